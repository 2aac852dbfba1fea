"""The suite itself: each test file runs, a test that hangs fails alone, and an ignored SIGINT changes nothing."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[1]


def _pytest(*arguments: str, shell: str = "", folder: Path = _ROOT, **more: str) -> str:
    """The output of pytest in a process that `shell` prepares."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")} | more
    done = subprocess.run(
        ["sh", "-c", f'{shell}\nexec "$0" -m pytest -p no:cacheprovider "$@"', sys.executable, *arguments],
        cwd=folder,
        env=environment | {"PYTHONPATH": str(_ROOT)},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    return done.stdout


def test_each_test_file_is_collected(request: pytest.FixtureRequest) -> None:
    """README's second command runs each file on the disk and in git that holds tests, whatever its folder's name."""
    readme = (_ROOT / "README.md").read_text(encoding="utf-8")
    command = re.search(r"^<!-- command 2 -->\n```sh\n.*\.venv/bin/pytest(.*)\n```", readme, re.MULTILINE)
    assert command is not None
    arguments = re.sub(r"^ -q -n \d+( --dist \w+)?$", "", command[1])  # what chooses no tests
    collected = {str(item.path.relative_to(_ROOT)) for item in request.session.items}
    if arguments or not _all_were_asked_for(request.config):
        output = _pytest(*shlex.split(command[1]), "--collect-only")
        collected = set(re.findall(r"^(tests/\S+?\.py)::", output, re.MULTILINE))
    expected = {str(path.relative_to(_ROOT)) for path in (_ROOT / "tests").rglob("test_*.py")}
    if (_ROOT / ".git").exists():  # not in the copy that .ci/run makes
        listed = subprocess.run(["git", "ls-files", "tests"], cwd=_ROOT, stdout=subprocess.PIPE, text=True, check=True)
        expected |= {line for line in listed.stdout.splitlines() if Path(line).match("test_*.py")}
    assert collected == expected


def _all_were_asked_for(config: pytest.Config) -> bool:
    """Whether this run is README's, which has collected all test files that there are to be found."""
    chosen = [
        config.getoption(name, None) for name in ("keyword", "markexpr", "deselect", "ignore", "ignore_glob", "lf")
    ]
    return config.args == config.getini("testpaths") and not any(chosen)


_HANGING = """\
import threading
import time

import anyio
import pytest

pytest_plugins = ["tests.support.time_limit"]
on_each_loop = pytest.mark.parametrize(
    "anyio_backend",
    [("asyncio", {}), ("asyncio", {"use_uvloop": True}), ("trio", {})],
    ids=["asyncio", "uvloop", "trio"],
)

def test_sleeps():
    time.sleep(1000)

def test_joins_a_thread():
    thread = threading.Thread(target=time.sleep, args=(1000,), daemon=True)
    thread.start()
    thread.join()

def test_absorbs_every_exception():
    while True:
        try:
            time.sleep(1000)
        except BaseException:
            pass

@pytest.fixture
def teardown_sleeps():
    yield
    time.sleep(1000)

def test_teardown(teardown_sleeps):
    pass

@on_each_loop
def test_runs_a_loop(anyio_backend):
    anyio.run(anyio.sleep_forever, backend=anyio_backend[0], backend_options=anyio_backend[1])

@on_each_loop
@pytest.mark.anyio
async def test_awaits(anyio_backend):
    await anyio.sleep_forever()

@on_each_loop
@pytest.mark.anyio
async def test_awaits_a_thread_that_sleeps(anyio_backend):
    await anyio.to_thread.run_sync(time.sleep, 1000)

@pytest.mark.parametrize("number", range(20))
def test_that_passes(number):
    pass
"""


def test_a_test_that_hangs_fails_alone(tmp_path: Path) -> None:
    """The run goes on to its end, wherever a test hangs: in C, in a thread, in a loop, or absorbing exceptions."""
    (tmp_path / "test_hanging.py").write_text(_HANGING)
    output = _pytest(
        *("-q", "-p", "xdist.plugin", "-n", "2", "-p", "pytest_timeout", "--timeout=1", "-p", "anyio"),
        *("-c", "/dev/null", "--rootdir=.", "test_hanging.py"),
        folder=tmp_path,
        PYTEST_DISABLE_PLUGIN_AUTOLOAD="1",  # a process that replaces one starts sooner
    )
    assert "INTERNALERROR" not in output
    # The test whose teardown hangs passes and is an error. The loops left behind may warn.
    assert re.search(r"^12 failed, 21 passed, (\d+ warnings?, )?1 error in", output, re.MULTILINE), output


def test_ctrl_c_is_tested_where_the_shell_ignores_it() -> None:
    """As `nohup` and shells without a terminal have it, a command starts with SIGINT ignored."""
    test = "tests/core/test_threads.py::test_ctrl_c_twice_waits_for_the_thread"
    output = _pytest("-q", test, shell="trap '' INT")
    assert re.search(r"^3 passed in", output, re.MULTILINE), output
