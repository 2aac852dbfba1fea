from __future__ import annotations

from pathlib import Path

import pytest

CONFIG = b'{"model_type": "gpt2"}\n'
WEIGHTS = bytes(range(256)) * 5000


@pytest.fixture
def hub_root(hub_root: Path) -> Path:
    """The hub's models: `org/name` with small files, LFS files and folders, and `gpt2` without an organisation."""
    model = hub_root / "org" / "name"
    (model / "sub" / "dir").mkdir(parents=True)
    (model / "config.json").write_bytes(CONFIG)
    (model / "empty.txt").touch()
    (model / "model.safetensors").write_bytes(WEIGHTS)
    (model / "sub" / "dir" / "vocab.txt").write_text("a\nb\n")
    (model / "sub" / "with space #1?.json").write_text("{}")
    (model / ".gitattributes").write_text("*.safetensors filter=lfs\n")
    (hub_root / "gpt2" / "onnx").mkdir(parents=True)
    (hub_root / "gpt2" / "config.json").write_bytes(CONFIG)
    (hub_root / "gpt2" / "onnx" / "decoder.onnx").write_bytes(b"onnx")
    return hub_root
