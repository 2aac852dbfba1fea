"""A converted model that is kept: whole or made again, and made by one demo at a time."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

import yaie_async
from tests.demo.packages import write_gguf
from yaie_async.core.errors import LoaderError
from yaie_async.demo import making
from yaie_async.demo.conversion import cache_folder, conversion_name, converted, is_whole

_REPO = "org/tiny"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a GGUF file and its conversion, for tests to copy or to leave as it is."""
    folder = tmp_path_factory.mktemp("made")
    write_gguf(folder / "tiny.gguf")
    converted(folder / "tiny.gguf", _REPO, folder / "kept", folder, lambda text: None)
    return folder


@pytest.fixture
def kept(made: Path, tmp_path: Path) -> Path:
    """A copy of the conversion, in a folder of conversions in `tmp_path`."""
    name = conversion_name(made / "tiny.gguf")
    shutil.copytree(made / "kept" / name, tmp_path / "kept" / name)
    return tmp_path / "kept" / name


def test_a_conversion_is_whole(kept: Path) -> None:
    """It has the files of a checkpoint, and passes its own check."""
    assert is_whole(kept)
    names = {path.name for path in (kept / "models" / _REPO).iterdir()}
    assert names >= {"config.json", "model.safetensors", "tokenizer.json"}


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda kept: flip(kept / "models" / _REPO / "model.safetensors"), id="a flipped byte"),
        pytest.param(lambda kept: (kept / "models" / _REPO / "config.json").unlink(), id="a missing file"),
        pytest.param(lambda kept: (kept / "models" / _REPO / "more.json").touch(), id="one file more"),
        pytest.param(lambda kept: (kept / "digests.json").unlink(), id="no digests"),
        pytest.param(lambda kept: (kept / "digests.json").write_text("{"), id="half of the digests"),
        pytest.param(lambda kept: (kept / "digests.json").write_text("{}"), id="digests of nothing"),
    ],
)
def test_a_damaged_conversion_is_not_whole(kept: Path, damage: Callable[[Path], object]) -> None:
    damage(kept)
    assert not is_whole(kept)


def test_a_corrupted_conversion_is_made_again(made: Path, kept: Path, tmp_path: Path) -> None:
    """The model that comes out is the one that the file holds, and what a killed demo left is removed."""
    weights = kept / "models" / _REPO / "model.safetensors"
    right = weights.read_bytes()
    flip(weights)
    left = kept.parent / ".making-x"
    (left / "conversion").mkdir(parents=True)
    said: list[str] = []
    root = converted(made / "tiny.gguf", _REPO, kept.parent, tmp_path, said.append)
    assert root == kept / "models"
    assert is_whole(kept)
    assert weights.read_bytes() == right
    assert [text.split()[0] for text in said] == ["Converting"]
    assert not left.exists()


def test_a_conversion_that_fails_leaves_nothing(tmp_path: Path, interpreter: Callable[[int], None]) -> None:
    """Half a checkpoint is removed; only the lock file stays."""
    interpreter(1)
    (tmp_path / "some.gguf").touch()
    with pytest.raises(LoaderError, match="could not be made: ValueError: no such thing"):
        converted(tmp_path / "some.gguf", _REPO, tmp_path / "kept", tmp_path, lambda text: None)
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["lock"]


def test_another_file_or_other_code_has_a_conversion_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name depends on the bytes of both, and on nothing else."""
    file, other = tmp_path / "some.gguf", tmp_path / "other.gguf"
    file.write_bytes(b"GGUF")
    other.write_bytes(b"GGUF")
    name = conversion_name(file)
    assert conversion_name(other) == name
    flip(other)
    assert conversion_name(other) != name
    (tmp_path / "making.py").write_text("# another version", encoding="utf-8")
    monkeypatch.setattr(making, "__file__", str(tmp_path / "making.py"))
    assert conversion_name(file) != name


def test_two_demos_at_once_convert_once(made: Path, tmp_path: Path) -> None:
    """Both wait for a third; then one of them converts, and the other takes what that one made."""
    folder = tmp_path / "kept"
    folder.mkdir()
    code = f"""
from pathlib import Path
from yaie_async.demo.conversion import converted

def say(text):
    print(text, flush=True)

file, folder, scratch = Path({str(made / "tiny.gguf")!r}), Path({str(folder)!r}), Path({str(tmp_path)!r})
say(str(converted(file, {_REPO!r}, folder, scratch, say)))
"""
    lock = FileLock(folder / "lock")
    with lock:
        demos = [
            subprocess.Popen(
                [sys.executable, "-c", code],
                stdout=subprocess.PIPE,
                text=True,
                env={"PYTHONPATH": str(Path(yaie_async.__file__).parents[1])},
            )
            for _ in range(2)
        ]
        for demo in demos:
            assert demo.stdout is not None
            assert demo.stdout.readline() == "Another demo is converting the model: waiting for it.\n"
    lines = [demo.communicate(timeout=60)[0].splitlines() for demo in demos]
    assert [demo.returncode for demo in demos] == [0, 0]
    kept = folder / conversion_name(made / "tiny.gguf")
    assert [said[-1] for said in lines] == [str(kept / "models")] * 2
    assert sorted(len(said) for said in lines) == [1, 2]
    assert is_whole(kept)


def test_where_conversions_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the user's cache folder; a relative path in XDG_CACHE_HOME counts as none, as its specification says."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert cache_folder() == tmp_path / "cache" / "yaie-async-demo"
    for other in ("", "cache"):
        monkeypatch.setenv("XDG_CACHE_HOME", other)
        assert cache_folder() == tmp_path / ".cache" / "yaie-async-demo"


def flip(file: Path) -> None:
    """Change the last byte of a file."""
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
