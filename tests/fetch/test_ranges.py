"""A range: one position, which the reading thread moves, the scheduler reads, and nothing else touches."""

import random
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.waiting import until
from yaie_async.fetch.ranges import FetchFile, FullError, Range
from yaie_async.fetch.scheduler import Scheduler
from yaie_async.fetch.stop import Stop
from yaie_async.store.blockmap import BLOCK

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Written:
    """Where a range puts its bytes; notes at which position each piece came."""

    def __init__(self, wait: float = 0.0) -> None:
        self.wait = wait
        self.pieces: list[tuple[int, bytes]] = []

    def put(self, of: Range, data: memoryview) -> float:
        self.pieces.append((of.position, bytes(data)))
        return self.wait

    @property
    def data(self) -> bytes:
        return b"".join(data for _, data in self.pieces)


def handed_out(size: int = 100, *, written: Written | None = None) -> Range:
    scheduler = Scheduler(1, verify=False)
    scheduler.add(FetchFile("f", "m", size, weights=False))
    one = scheduler.next(0.0)
    assert one is not None
    one.open((written or Written()).put, 1 << 20)
    return one


def write(one: Range, data: bytes) -> None:
    one.write(memoryview(data), Stop())


@given(skip=st.integers(0, 40), sizes=st.lists(st.integers(0, 30), max_size=12), more=st.integers(0, 9))
async def test_what_is_written_is_skipped_and_what_is_too_much_is_refused(
    skip: int, sizes: list[int], more: int
) -> None:
    """Whatever pieces a body comes in: each byte is put once, where it belongs, and none behind the end."""
    written = Written()
    one = handed_out(written=written)
    content = random.Random(1).randbytes(100 + more)
    write(one, content[:skip])
    one.begin(0)  # the server sends the file from its start again
    at = 0
    for size in [*sizes, len(content)]:
        piece, at = content[at : at + size], at + size
        if at > 100 and more:
            with pytest.raises(FullError):
                write(one, piece)
            break
        write(one, piece)
    assert one.position == one.stop == 100
    assert written.data == content[:100]
    assert [start for start, _ in written.pieces] == [
        sum(len(data) for _, data in written.pieces[:count]) for count in range(len(written.pieces))
    ]


async def test_a_byte_counts_once_it_is_put() -> None:
    """The position moves after the bytes are written, and does not move where writing fails."""

    def put(of: Range, data: memoryview) -> float:
        positions.append(of.position)
        if len(positions) == 2:
            raise OSError(28, "No space left on device")
        return 0.0

    positions: list[int] = []
    one = handed_out()
    one.open(put, 1)
    write(one, bytes(10))
    with pytest.raises(OSError, match="No space left"):
        write(one, bytes(10))
    assert (positions, one.position) == ([0, 10], 10)


async def test_the_wait_for_the_rate_comes_after_the_position_and_ends_with_a_stop() -> None:
    """A thread that waits for its share of the rate has counted its bytes, and wakes up at once."""
    one, stopped = handed_out(written=Written(wait=60.0)), Stop()
    thread = threading.Thread(target=one.write, args=(memoryview(bytes(7)), stopped))
    thread.start()
    await until(lambda: one.position == 7)
    assert thread.is_alive()
    stopped.set()
    thread.join(10)
    assert not thread.is_alive()


async def test_a_position_never_goes_back() -> None:
    """The front follows it, and a digest may have read that far."""
    one = handed_out()
    one.advance(9)
    one.advance(9)
    for position in (8, 101, -1):
        with pytest.raises(ValueError, match="outside"):
            one.advance(position)
    assert one.position == 9


async def test_threads_may_advance_while_the_scheduler_looks() -> None:
    """The front never passes a byte that is not written, never goes back, and reaches the end."""
    size = 64 * BLOCK
    scheduler = Scheduler(4, verify=False)
    scheduler.add(FetchFile("f", "m", size, weights=False))
    written: dict[int, int] = {}  # by the start of a range: up to where it has been put

    def put(of: Range, data: memoryview) -> float:
        written[of.start] = of.position + len(data)
        time.sleep(0)  # lets the other threads run
        return 0.0

    def read(one: Range) -> None:
        piece, stopped = memoryview(bytes(BLOCK // 64 + 1)), Stop()
        while one.position < one.stop:
            one.write(piece[: one.stop - one.position], stopped)

    def missing() -> int:
        """The first byte that is not put; taken after the front, so that it can only be later."""
        at = 0
        while at in written and written[at] > at:
            at = written[at]
        return at

    front, running = 0, {}
    while front < size:
        while (one := scheduler.next(0.0)) is not None:
            one.open(put, BLOCK)
            running[one] = threading.Thread(target=read, args=(one,))
            running[one].start()
        for _ in range(200):
            scheduler.look(0.0)
            now = scheduler.front("f")
            assert front <= now <= missing()
            front = now
        for one in [one for one, thread in running.items() if not thread.is_alive()]:
            del running[one]
            scheduler.give_back(one, 0.0)
    for thread in running.values():
        thread.join()
