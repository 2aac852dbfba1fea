"""Fixtures for the command line, with a hub of small models."""

import json
from pathlib import Path

import pytest

from tests.support.command import Command
from tests.support.hub import HubServer


def pretend_model(directory: Path, size: int = 300_000) -> Path:
    """Write the files of a model that can be fetched but not built: the weights are not tensors."""
    directory.mkdir(parents=True)
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "dtype": "float32"}
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (directory / "tokenizer.json").write_text("{}", encoding="utf-8")
    (directory / "tokenizer_config.json").write_text("{ }", encoding="utf-8")
    weights = bytes(number * 7 % 251 for number in range(size)) + str(directory.name).encode()
    (directory / "model.safetensors").write_bytes(weights)
    return directory


@pytest.fixture
def hub_root(tmp_path: Path) -> Path:
    root = tmp_path / "models"
    for name in ("one", "two"):
        pretend_model(root / "org" / name)
    return root


@pytest.fixture
def command(hub: HubServer, tmp_path: Path) -> Command:
    """The command line, with `hub` as its Hub and an empty cache."""
    home = tmp_path / "home"
    home.mkdir()
    return Command(home, hub.url)
