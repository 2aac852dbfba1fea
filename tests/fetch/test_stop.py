import threading
import time

from tests.support.stopwatch import Stopwatch
from yaie_async.fetch.stop import Stop


def test_a_wait_lasts_as_long_as_asked() -> None:
    stop = Stop()
    started = time.monotonic()
    assert not stop.wait(0.02)
    assert time.monotonic() - started >= 0.02
    assert not stop.is_set()


def test_setting_it_ends_every_wait_and_may_be_repeated() -> None:
    stop = Stop()
    results: list[bool] = []
    waiting = [threading.Thread(target=lambda: results.append(stop.wait(60))) for _ in range(3)]
    for thread in waiting:
        thread.start()
    watch = Stopwatch()
    for _ in range(3):
        stop.set()
    for thread in waiting:
        thread.join()
    assert watch.seconds < 1
    assert results == [True] * 3
    assert stop.is_set()
    assert stop.wait(60)
