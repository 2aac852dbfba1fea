"""Whatever undocumented name a library drops, a model loads, is stock's bit for bit, and the log says what is lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.loader import registered
from tests.support.hub import HubServer
from yaie_async.model.compat import NAMES as MODEL_NAMES
from yaie_async.store.compat import NAMES as HUB_NAMES

pytestmark = pytest.mark.timeout(300)  # all loads of this module are made before its first test

NAMES = [*MODEL_NAMES.losses, *HUB_NAMES.losses]
_ROOT = Path(__file__).parents[2]


def _model(name: str | None) -> str:
    return "org/quantised" if name is not None and "QUANTIZATION" in name else "org/mine"


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str | None, Any]:
    """What each load logged and whether it failed, by the name that was missing."""
    root, out = tmp_path_factory.mktemp("models"), tmp_path_factory.mktemp("results")
    registered.write(root / "org" / "mine")
    registered.write(root / "org" / "quantised", quantization_config={"quant_method": "mine"})
    names = [None, *NAMES]
    with HubServer(root) as hub:
        subprocess.run(
            [sys.executable, "-m", "tests.loader.without_names", hub.url, str(root), str(out)],
            cwd=_ROOT,
            env=os.environ | {"PYTHONPATH": str(_ROOT)},
            input=json.dumps([(name, _model(name)) for name in names]).encode(),
            check=True,
            timeout=280,
        )
    return {name: json.loads((out / f"{number}.json").read_text()) for number, name in enumerate(names)}


def test_with_all_names_nothing_is_missed(results: dict[str | None, Any]) -> None:
    """Neither a name nor the build during the download."""
    assert results[None]["failed"] is None
    assert [line for line in results[None]["lines"] if " has no " in line or "finished snapshot" in line] == []


@pytest.mark.parametrize("name", NAMES)
def test_without_a_name(name: str, results: dict[str | None, Any]) -> None:
    """A cold load, a warm one and a choice by patterns end well; one line of the log names what is missing."""
    assert results[name]["failed"] is None
    said = [line for line in results[name]["lines"] if f" has no {name.replace(':', '.')}: " in line]
    assert len(said) == 1, results[name]["lines"]
    assert said[0].startswith(f"{name.partition('.')[0].partition(':')[0]} (")
