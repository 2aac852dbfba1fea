"""Checks of a checkpoint's files that need more than their names: code, headers, damage."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from yaie_async.core.errors import IncompatibleModelError, ModelFileNotFoundError
from yaie_async.core.manifest import LFS_POINTER
from yaie_async.model.header import MONSTROUS, HeaderError, UnknownDtypeError, read_header

if TYPE_CHECKING:
    from yaie_async.model.request import BuildRequest


def check_code(request: BuildRequest) -> None:
    """Refuse a model whose code is to be run and does not exist.

    transformers keeps a registry of the classes that it has run, and may take one of another directory instead.
    """
    if not request.trust_remote_code:
        return
    for auto_class in ("AutoConfig", "AutoModelForCausalLM"):
        reference = request.auto_map.get(auto_class)
        if not isinstance(reference, str) or "--" in reference:  # with a repo before "--" it is in that one
            continue
        name = code_file(reference)
        if not (request.folder / name).is_file():
            raise ModelFileNotFoundError(
                f"config.json of {request.source} names the code {name}, which does not exist. "
                "Save or fetch the model again.",
                model=request.source,
                file=name,
            )


def code_file(reference: str) -> str:
    """The class `org/repo--modeling_x.Class` is in `modeling_x.py`."""
    return reference.rpartition("--")[2].rpartition(".")[0] + ".py"


def repo_of(reference: str) -> str:
    """Where the code of a reference is, in words."""
    repo, other, name = reference.rpartition("--")
    return f"another repo, {repo} ({name})" if other else f"its repo ({reference})"


def check_headers(request: BuildRequest) -> None:
    """Refuse a monstrous header before anything parses it, and a file that can't be opened.

    safetensors reports a file that it may not read as "No such file or directory"; here it is the system's OSError.
    """
    for weights in request.manifest.weights:
        path = request.folder / weights.path
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
        if path.suffix == ".safetensors" and MONSTROUS < length <= size - 8:
            raise IncompatibleModelError(
                f"{weights.path} of {request.source} has a header of {length:,} bytes, more than any checkpoint needs. "
                "Nothing of it was parsed. Save the model again, in shards.",
                model=request.source,
                file=weights.path,
            )


def lfs_pointers(request: BuildRequest) -> list[str]:
    """The files that are pointers of git-lfs, which are shorter than 1,024 bytes; the weights are the first."""
    manifest, found = request.manifest, []
    for file in (*manifest.weights, *manifest.small):
        if (file.size or 0) < 1024:
            with (request.folder / file.path).open("rb") as opened:
                if opened.read(len(LFS_POINTER)) == LFS_POINTER:
                    found.append(file.path)
    return found


def damaged_file(request: BuildRequest) -> str | None:
    """The first weight file whose structure is broken, or None. Reads a few bytes of each."""
    paths = (weights.path for weights in request.manifest.weights)
    return next((path for path in paths if _is_damaged(request.folder / path)), None)


def _is_damaged(path: Path) -> bool:
    with path.open("rb") as file:
        if path.suffix != ".safetensors":
            start = file.read(8)
            return not (zipfile.is_zipfile(path) if start.startswith(b"PK") else start.startswith(b"\x80"))
        try:
            read_header(file, os.fstat(file.fileno()).st_size)
        except UnknownDtypeError:
            return False
        except HeaderError:
            return True
    return False
