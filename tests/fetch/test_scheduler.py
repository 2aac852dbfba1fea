"""The scheduler: no block lost or doubled under any sequence of calls, and the order it promises."""

import heapq
import itertools
import random
from collections.abc import Hashable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from yaie_async.fetch.ranges import FetchFile, Range
from yaie_async.fetch.scheduler import LARGEST, Scheduler
from yaie_async.store.blockmap import BLOCK, block_count

MiB = 1 << 20
sizes = st.integers(0, 40 * BLOCK) | st.sampled_from([0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 300 * BLOCK + 5])


def _scheduler(*files: FetchFile, connections: int = 4, verify: bool = False) -> Scheduler:
    scheduler = Scheduler(connections, verify=verify)
    for file in files:
        scheduler.add(file)
    return scheduler


def _write(scheduler: Scheduler, one: Range, position: int, now: float) -> None:
    """What a reading thread and the tick after it do: everything up to `position` is written, and seen."""
    one.advance(position)
    scheduler.look(now)


def _finish(scheduler: Scheduler, one: Range, now: float) -> None:
    """Everything of the range is written, and its worker gives it back."""
    one.advance(one.stop)
    scheduler.give_back(one, now)


def _drain(scheduler: Scheduler, seed: int = 0) -> list[Range]:
    """Everything it hands out, with a full house of workers that finish in random order."""
    rng, running, seen = random.Random(seed), [], []
    while True:
        while (one := scheduler.next(0.0)) is not None:
            running.append(one)
            seen.append(one)
        if not running:
            return seen
        _finish(scheduler, running.pop(rng.randrange(len(running))), 0.0)


class SchedulerMachine(RuleBasedStateMachine):
    """Drives the scheduler by anything a caller may do, against a model that knows every byte's state."""

    @initialize(connections=st.integers(1, 9), verify=st.booleans())
    def start(self, connections: int, verify: bool) -> None:
        self.now = 100.0
        self.connections = connections
        self.verify = verify
        self.scheduler = Scheduler(connections, verify=verify)
        self.files: dict[Hashable, FetchFile] = {}
        self.written: dict[Hashable, list[tuple[int, int]]] = {}
        self.verified: dict[Hashable, int] = {}
        self.running: list[Range] = []
        self.removed: list[Range] = []
        self.keys = itertools.count()

    @rule(size=sizes, model=st.integers(0, 2), weights=st.booleans(), seed=st.none() | st.integers(0, 99))
    def add(self, size: int, model: int, weights: bool, seed: int | None) -> None:
        done = b"" if seed is None else bytes(random.Random(seed).choices([0, 1], k=block_count(size)))
        file = FetchFile(next(self.keys), model, size, weights, done)
        self.scheduler.add(file)
        self.files[file.key] = file
        self.verified[file.key] = 0
        self.written[file.key] = [(i * BLOCK, min((i + 1) * BLOCK, size)) for i, there in enumerate(done) if there]

    @precondition(lambda self: self.files)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(list(self.files)))
        self.scheduler.remove(key)
        interrupted = [one for one in self.running if one.file.key == key]
        self.running = [one for one in self.running if one not in interrupted]
        self.removed += interrupted
        del self.files[key], self.written[key], self.verified[key]

    @rule(count=st.integers(1, 12))
    def hand_out(self, count: int) -> None:
        for _ in range(count):
            one = self.scheduler.next(self.now)
            if one is None:
                return
            self._check(one)
            self.running.append(one)

    def _check(self, one: Range) -> None:
        assert one.file is self.files[one.file.key]
        assert one.start < one.stop <= one.file.size
        assert one.stop == one.file.size or one.stop % BLOCK == 0
        assert one.stop - one.start <= LARGEST
        others = [(r.start, r.stop) for r in self.running if r.file is one.file] + self.written[one.file.key]
        assert all(stop <= one.start or one.stop <= start for start, stop in others), "handed out twice"
        assert len(self.running) + len(self.removed) < self.scheduler.width <= self.connections

    @precondition(lambda self: self.running)
    @rule(data=st.data(), share=st.floats(0, 1))
    def progress(self, data: st.DataObject, share: float) -> None:
        one = data.draw(st.sampled_from(self.running))
        _write(self.scheduler, one, one.position + int((one.stop - one.position) * share), self.now)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), share=st.floats(0, 1))
    def progress_that_is_not_looked_at_yet(self, data: st.DataObject, share: float) -> None:
        one = data.draw(st.sampled_from(self.running))
        one.advance(one.position + int((one.stop - one.position) * share))

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def done(self, data: st.DataObject) -> None:
        one = self._pop(data)
        _finish(self.scheduler, one, self.now)
        self.written[one.file.key].append((one.start, one.stop))

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        one = self._pop(data)
        self._give_back(one)

    def _give_back(self, one: Range) -> None:
        self.scheduler.give_back(one, self.now)
        if one.position > one.start:
            self.written[one.file.key].append((one.start, one.position))

    def _pop(self, data: st.DataObject) -> Range:
        return self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))

    @precondition(lambda self: self.removed)
    @rule(finished=st.booleans())
    def end_a_removed_one(self, finished: bool) -> None:
        one = self.removed.pop()
        if finished:
            one.advance(one.stop)
        self.scheduler.give_back(one, self.now)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def restart(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.running)).restart()

    @rule(seconds=st.floats(0, 8))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(ago=st.floats(0, 10))
    def throttled(self, ago: float) -> None:
        before = self.scheduler.width
        self.scheduler.throttled(self.now - ago, self.now)
        assert self.scheduler.width >= max(1, before // 2)

    @rule()
    def drop_the_slow(self) -> None:
        for one in self.scheduler.slow(self.now):
            if one in self.running:
                self.running.remove(one)
                self._give_back(one)
            else:
                self.removed.remove(one)
                self.scheduler.give_back(one, self.now)

    @precondition(lambda self: self.files)
    @rule(data=st.data())
    def hash_up_to_the_front(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(list(self.files)))
        self.verified[key] = self.scheduler.front(key)
        self.scheduler.verified(key, self.verified[key])

    @invariant()
    def the_front_is_the_first_byte_that_is_not_written(self) -> None:
        for key, file in self.files.items():
            there = self.written[key] + [(r.start, r.position) for r in self.running if r.file is file]
            front = 0
            for start, stop in sorted(there):
                front = stop if start == front else front
            assert self.scheduler.front(key) == front

    def teardown(self) -> None:
        """However it stands: with workers that do their work it ends, and every byte was written once."""
        if not hasattr(self, "scheduler"):
            return
        for one in self.removed:
            self.scheduler.give_back(one, self.now)
        self.removed = []
        while True:
            for key in self.files:
                self.scheduler.verified(key, self.scheduler.front(key))
            self.hand_out(self.connections)
            if not self.running:
                break
            one = self.running.pop(0)
            _finish(self.scheduler, one, self.now)
            self.written[one.file.key].append((one.start, one.stop))
        for key, file in self.files.items():
            assert self.scheduler.front(key) == file.size
            assert sum(stop - start for start, stop in self.written[key]) == file.size


SchedulerMachine.TestCase.settings = settings(max_examples=200, stateful_step_count=50, deadline=None)
TestAnySequence = SchedulerMachine.TestCase


@given(st.lists(sizes, max_size=6), st.integers(1, 16), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_every_byte_is_handed_out_once(file_sizes: list[int], connections: int, seed: int) -> None:
    scheduler = _scheduler(*(FetchFile(i, "m", size) for i, size in enumerate(file_sizes)), connections=connections)
    handed_out = _drain(scheduler, seed)
    for i, size in enumerate(file_sizes):
        spans = sorted((one.start, one.stop) for one in handed_out if one.file.key == i)
        assert [0, *(stop for _, stop in spans)][: len(spans)] == [start for start, _ in spans]
        assert scheduler.front(i) == size


def test_small_files_then_headers_then_blocks_in_the_order_of_the_shards() -> None:
    scheduler = _scheduler(
        FetchFile("shard 1", "m", 3 * BLOCK),
        FetchFile("shard 2", "m", 2 * BLOCK),
        FetchFile("config", "m", 600, weights=False),
        FetchFile("tokenizer", "m", 2 * MiB, weights=False),
    )
    order = [(one.file.key, one.start // BLOCK) for one in _drain(scheduler)]
    assert order == [
        ("config", 0),
        ("tokenizer", 0),
        ("shard 1", 0),
        ("shard 2", 0),
        ("shard 1", 2),  # the last one second, to see whether the server sends what is ahead
        ("shard 1", 1),
        ("shard 2", 1),
    ]


def test_the_last_block_has_to_bring_a_byte_before_there_is_a_third_request() -> None:
    """A cache without slices would read the file from its start for each of them. Another file is not held up."""
    scheduler = _scheduler(FetchFile("f", "m", 9 * BLOCK, path="a"), connections=8)
    header, last = scheduler.next(0.0), scheduler.next(0.0)
    assert header is not None
    assert last is not None
    assert (header.start, last.start, last.stop) == (0, 8 * BLOCK, 9 * BLOCK)
    assert scheduler.next(0.0) is None
    _finish(scheduler, header, 0.0)
    assert scheduler.next(0.0) is None
    scheduler.add(FetchFile("other", "m", 9 * BLOCK, path="b"))
    other = [one.start // BLOCK for one in (scheduler.next(0.0), scheduler.next(0.0)) if one is not None]
    assert other == [0, 8]
    assert scheduler.next(0.0) is None
    scheduler.give_back(last, 0.0)  # without a byte
    again = scheduler.next(0.0)
    assert again is not None
    assert again.start == BLOCK  # the front goes on, and the last block is tried again
    last = scheduler.next(0.0)
    assert last is not None
    assert last.start == 8 * BLOCK
    assert scheduler.next(0.0) is None
    _write(scheduler, last, last.start + 1, 0.0)
    one = scheduler.next(0.0)
    assert one is not None
    assert (one.file.key, one.start) == ("f", again.stop)


def test_a_file_whose_last_block_came_earlier_needs_no_trial() -> None:
    for file in (
        FetchFile("f", "m", 9 * BLOCK, done=bytes(8) + b"\1"),
        FetchFile("f", "m", 9 * BLOCK, begun=((8 * BLOCK, 8 * BLOCK + 1),)),
    ):
        scheduler = _scheduler(file, connections=8)
        starts = [one.start // BLOCK for _ in range(4) if (one := scheduler.next(0.0)) is not None]
        assert starts == [0, 1, 2, 3]


def test_files_are_handed_out_in_the_order_of_their_paths_whichever_came_first() -> None:
    """A build reads shards by name: they come in that order, though each gets its lock and partial when it can."""
    shards = [FetchFile(f"shard {i}", "m", 2 * BLOCK, path=f"model-{i:05}.safetensors") for i in range(12)]
    arrived = random.Random(3).sample(shards, len(shards))
    seen = [(one.file, one.start > 0) for one in _drain(_scheduler(*arrived, connections=1))]
    assert seen == [(shard, False) for shard in shards] + [(shard, True) for shard in shards]


def test_another_models_small_files_pass_before_blocks() -> None:
    scheduler = _scheduler(FetchFile("shard", "a", 100 * BLOCK))
    scheduler.next(0.0)
    scheduler.next(0.0)
    scheduler.add(FetchFile("config", "b", 100, weights=False))
    one = scheduler.next(0.0)
    assert one is not None
    assert one.file.key == "config"


@given(
    st.lists(st.tuples(sizes, st.booleans()), min_size=1, max_size=6),
    st.integers(1, 16),
    st.integers(2, 4),
    st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_equal_models_never_differ_by_more_than_two_ranges(
    files: list[tuple[int, bool]], connections: int, models: int, seed: int
) -> None:
    scheduler = _scheduler(
        *(FetchFile((m, i), m, *file) for m in range(models) for i, file in enumerate(files)),
        connections=connections,
    )
    # Each model's ranges end in the order they began, so that neither is ever held up by a stuck one of its own.
    rng, running = random.Random(seed), []
    handed: dict[Hashable, int] = dict.fromkeys(range(models), 0)
    while True:
        while (one := scheduler.next(0.0)) is not None:
            running.append(one)
            handed[one.file.model] += 1
            _write(scheduler, one, min(one.start + 1, one.stop), 0.0)  # the server answers at once
            assert max(handed.values()) - min(handed.values()) <= 2
        if not running:
            break
        model = rng.choice(running).file.model
        oldest = next(one for one in running if one.file.model == model)
        running.remove(oldest)
        _finish(scheduler, oldest, 0.0)
    assert max(handed.values()) - min(handed.values()) <= 2  # a last block may come in a request of its own or not


def test_a_newcomer_gets_its_share_and_not_all_that_it_missed() -> None:
    scheduler = _scheduler(FetchFile("old", "a", 2000 * BLOCK))
    for _ in range(30):
        one = scheduler.next(0.0)
        assert one is not None
        _finish(scheduler, one, 0.0)
    scheduler.add(FetchFile("new", "b", 2000 * BLOCK))
    models = []
    for _ in range(20):
        one = scheduler.next(0.0)
        assert one is not None
        models.append(one.file.model)
        _finish(scheduler, one, 0.0)
    assert 9 <= models.count("a") <= 11


def test_a_range_given_back_is_not_kept_waiting_by_a_newcomer() -> None:
    """A model with nothing to ask for keeps its place in the line, and a newcomer gets none before it."""
    scheduler = _scheduler(FetchFile("old", "a", 2 * BLOCK), connections=2)
    first, second = scheduler.next(0.0), scheduler.next(0.0)
    assert first is not None
    assert second is not None
    scheduler.give_back(second, 0.0)
    scheduler.add(FetchFile("new", "b", 100 * BLOCK, weights=False))
    scheduler.remove("new")
    again = scheduler.next(0.0)
    assert again is not None
    assert (again.start, again.stop) == (second.start, second.stop)


def test_a_request_is_for_its_share_of_what_is_left() -> None:
    left = 3000 * BLOCK
    scheduler = _scheduler(FetchFile("f", "m", left, weights=False), connections=8)
    seen = [one.stop - one.start for one in _drain(scheduler)]
    assert seen[0] == LARGEST
    assert seen[-1] == BLOCK
    assert seen == sorted(seen, reverse=True)
    for size in seen:
        share = left / 12  # as ÷ 16 of that and the halves that 8 connections are busy with
        assert min(share, LARGEST) <= max(size, BLOCK) <= min(max(share + BLOCK, BLOCK), LARGEST)
        left -= size


@pytest.mark.parametrize("connections", [1, 2, 4, 8, 16, 32])
@pytest.mark.parametrize("shards", [[548_000_000], [2_000_000_000], [440_000_000] * 5, [4_900_000_000] * 3], ids=str)
def test_a_cold_model_takes_no_more_requests_than_promised(shards: list[int], connections: int) -> None:
    """At most one for each small file, one for 32 MiB and one for each connection, however they end."""
    small = [FetchFile(f"small {i}", "m", size, weights=False) for i, size in enumerate((700, 2 * MiB, 11 * MiB))]
    files = [*small, *(FetchFile(i, "m", size) for i, size in enumerate(shards))]
    most = len(small) + -(-sum(file.size for file in files) // (32 * MiB)) + connections
    for seed in range(5):
        assert len(_drain(_scheduler(*files, connections=connections), seed)) <= most


def test_a_request_that_failed_is_not_counted_among_those_promised() -> None:
    """Else what is left after failures would be asked for in a few large pieces, and connections idle."""
    scheduler = _scheduler(FetchFile("f", "m", 60 * BLOCK, weights=False))
    for _ in range(50):
        one = scheduler.next(0.0)
        assert one is not None
        scheduler.give_back(one, 0.0)
    assert len(_drain(scheduler)) > 8


def _busy(connections: int, size: int, *, hashed: float, spread: float) -> float:
    """Share of their time that `connections` of equal speed (but for `spread`) are busy with a file of `size` bytes.

    A connection brings one byte per second ÷ `size` of its own; the digest reads `hashed` times that.
    """
    rng, scheduler = random.Random(7), _scheduler(FetchFile("f", "m", size), connections=connections, verify=True)
    events: list[tuple[float, int, Range | None]] = []  # when, a tie-breaker, which range ends (None: the digest's)
    now = busy = 0.0
    verified, hashing, order = 0, False, itertools.count()
    while verified < size:
        while (one := scheduler.next(now)) is not None:
            seconds = (one.stop - one.start) / (1 + rng.uniform(-spread, spread))
            busy += seconds
            heapq.heappush(events, (now + seconds, next(order), one))
        front = scheduler.front("f")
        if front > verified and not hashing:
            hashing = True
            heapq.heappush(events, (now + (front - verified) / hashed, next(order), None))
            target = front
        now, _, ended = heapq.heappop(events)
        if ended is not None:
            _finish(scheduler, ended, now)
        else:
            verified, hashing = target, False
            scheduler.verified("f", verified)
    return busy / connections / now


@pytest.mark.parametrize("spread", [0.0, 0.1, 0.3])
def test_connections_of_a_capped_server_stay_busy(spread: float) -> None:
    """Equal connections end their ranges at once, out of order by chance, and the digest needs a while for them.

    They don't wait for it: 2 GB by 8 connections at 60 MB/s, the digest at 1.2 GB/s.
    """
    assert _busy(8, 2_000_000_000, hashed=20, spread=spread) > 0.92


def test_no_more_finished_ranges_than_connections_lie_ahead_of_the_verified_front() -> None:
    scheduler = _scheduler(FetchFile("f", "m", 3000 * BLOCK), verify=True)
    ahead = []
    while (one := scheduler.next(0.0)) is not None:
        _finish(scheduler, one, 0.0)
        ahead.append(one)
    assert len(ahead) == 4
    assert scheduler.front("f") == ahead[-1].stop
    scheduler.verified("f", ahead[0].stop - 1)
    assert scheduler.next(0.0) is None
    scheduler.verified("f", ahead[0].stop)
    last = scheduler.next(0.0)
    assert last is not None
    _finish(scheduler, last, 0.0)
    assert scheduler.next(0.0) is None


def test_a_range_given_back_behind_finished_ones_is_not_ahead() -> None:
    """Or the digest would wait for it, and it for the digest."""
    scheduler = _scheduler(FetchFile("f", "m", 3000 * BLOCK, weights=False), verify=True)
    failed = scheduler.next(0.0)
    assert failed is not None
    for _ in range(4):
        one = scheduler.next(0.0)
        assert one is not None
        _finish(scheduler, one, 0.0)
    assert scheduler.next(0.0) is None
    scheduler.give_back(failed, 0.0)
    again = scheduler.next(0.0)
    assert again is not None
    assert again.start == failed.start


def test_a_file_that_waits_for_its_digest_lets_others_pass() -> None:
    scheduler = _scheduler(FetchFile("f", "m", 3000 * BLOCK), FetchFile("g", "m", 3000 * BLOCK), verify=True)
    keys = []
    while (one := scheduler.next(0.0)) is not None:
        keys.append(one.file.key)
        _finish(scheduler, one, 0.0)
    assert keys.count("f") == keys.count("g") == 4


def test_without_verification_one_stuck_range_holds_its_file_back() -> None:
    scheduler = _scheduler(FetchFile("f", "m", 3000 * BLOCK))
    stuck = scheduler.next(0.0)
    assert stuck is not None
    for _ in range(5):  # the last block, and four that are ahead
        one = scheduler.next(0.0)
        assert one is not None
        _finish(scheduler, one, 0.0)
    assert scheduler.next(0.0) is None
    _finish(scheduler, stuck, 0.0)
    assert scheduler.next(0.0) is not None


def test_a_range_given_back_goes_on_at_the_very_byte() -> None:
    """A peer that closes each connection after 1 MB still gets every block done."""
    scheduler = _scheduler(FetchFile("f", "m", 5 * BLOCK), connections=1)
    requests = 0
    while (one := scheduler.next(0.0)) is not None:
        requests += 1
        _write(scheduler, one, min(one.stop, one.start + MiB), 0.0)
        scheduler.give_back(one, 0.0)
    assert requests == 20
    assert scheduler.front("f") == 5 * BLOCK


def test_one_given_back_in_the_middle_of_a_block_is_cut_at_blocks_again() -> None:
    scheduler = _scheduler(FetchFile("f", "m", 3000 * BLOCK, weights=False), connections=1)
    one = scheduler.next(0.0)
    assert one is not None
    _write(scheduler, one, 5, 0.0)
    scheduler.give_back(one, 0.0)
    again = scheduler.next(0.0)
    assert again is not None
    assert (again.start, again.stop) == (5, LARGEST)


def test_neighbours_given_back_are_asked_for_together() -> None:
    scheduler = _scheduler(FetchFile("f", "m", 8 * BLOCK, weights=False), connections=2)
    first, second = scheduler.next(0.0), scheduler.next(0.0)
    assert first is not None
    assert second is not None
    assert first.stop == second.start
    _write(scheduler, first, first.stop - 1, 0.0)
    scheduler.give_back(first, 0.0)
    scheduler.give_back(second, 0.0)
    again = scheduler.next(0.0)
    assert again is not None
    assert again.start == first.stop - 1
    assert again.stop > first.stop


def test_what_is_given_back_counts_as_left() -> None:
    """Else a file whose ranges keep failing would be cut into ever smaller requests."""
    scheduler = _scheduler(FetchFile("f", "m", 60 * BLOCK, weights=False))
    sizes = set()
    for _ in range(9):
        one = scheduler.next(0.0)
        assert one is not None
        sizes.add(one.stop - one.start)
        scheduler.give_back(one, 0.0)
    assert sizes == {10 * BLOCK}


def test_the_front_passes_a_range_that_is_written_and_not_yet_done() -> None:
    scheduler = _scheduler(FetchFile("f", "m", 3 * BLOCK, done=b"\0\1\0"))
    one = scheduler.next(0.0)
    assert one is not None
    _write(scheduler, one, BLOCK, 0.0)
    assert scheduler.front("f") == 2 * BLOCK


def test_beginnings_of_blocks_that_are_written_are_not_asked_for() -> None:
    file = FetchFile("f", "m", 5 * BLOCK, done=b"\0\1\0\0\0", begun=((3 * BLOCK, 3 * BLOCK + 7), (0, 5)))
    scheduler = _scheduler(file, connections=9)
    assert scheduler.front("f") == 5
    assert sorted((one.start, one.stop) for one in _drain(scheduler)) == [
        (5, BLOCK),
        (2 * BLOCK, 3 * BLOCK),
        (3 * BLOCK + 7, 4 * BLOCK),
        (4 * BLOCK, 5 * BLOCK),
    ]


def test_a_whole_file_is_one_range() -> None:
    scheduler = _scheduler(FetchFile("f", "m", 300 * BLOCK + 1, whole=True))
    assert [(one.start, one.stop) for one in _drain(scheduler)] == [(0, 300 * BLOCK + 1)]


def test_progress_outside_of_the_range_is_refused() -> None:
    scheduler = _scheduler(FetchFile("f", "m", 5 * BLOCK))
    one = scheduler.next(0.0)
    assert one is not None
    for position in (-1, BLOCK + 1):
        with pytest.raises(ValueError, match="outside"):
            _write(scheduler, one, position, 0.0)


def test_a_key_stands_for_one_file_and_a_map_for_its_blocks() -> None:
    scheduler = _scheduler(FetchFile("f", "m", 5 * BLOCK))
    with pytest.raises(ValueError, match="already"):
        scheduler.add(FetchFile("f", "m", 1))
    with pytest.raises(ValueError, match="a map of 1 blocks"):
        scheduler.add(FetchFile("g", "m", 5 * BLOCK, done=b"\1"))


def test_a_file_added_again_owes_nothing_to_the_ranges_of_its_first_life() -> None:
    scheduler = _scheduler(FetchFile("f", "m", 2 * BLOCK))
    old = scheduler.next(0.0)
    assert old is not None
    scheduler.remove("f")
    scheduler.add(FetchFile("f", "m", 2 * BLOCK))
    _write(scheduler, old, BLOCK, 0.0)
    _finish(scheduler, old, 0.0)
    assert scheduler.front("f") == 0
    assert [one.start for one in _drain(scheduler)] == [0, BLOCK]


class TestWidth:
    def test_halves_once_for_one_crowd_of_requests(self) -> None:
        scheduler = _scheduler(connections=16)
        scheduler.throttled(sent=9.0, now=10.0)
        scheduler.throttled(sent=9.5, now=10.1)
        assert scheduler.width == 8
        scheduler.throttled(sent=10.2, now=10.3)
        assert scheduler.width == 4

    def test_never_falls_below_one(self) -> None:
        scheduler = _scheduler(connections=3)
        for now in range(1, 9):
            scheduler.throttled(sent=now - 0.5, now=float(now))
        assert scheduler.width == 1

    def test_grows_by_one_in_five_seconds_up_to_the_limit(self) -> None:
        scheduler = _scheduler(FetchFile("f", "m", 999 * BLOCK, weights=False), connections=4)
        scheduler.throttled(sent=0.0, now=10.0)
        assert [scheduler.next(10.0) is None for _ in range(3)] == [False, False, True]
        for width, at in ((3, 15.0), (4, 20.0)):
            assert scheduler.next(at - 0.01) is None
            assert scheduler.next(at) is not None
            assert scheduler.width == width
        scheduler.throttled(sent=999.0, now=1000.0)
        assert scheduler.width == 2
        scheduler.next(9999.0)
        assert scheduler.width == 4


class TestSlow:
    @staticmethod
    def _run(rates: list[float], seconds: float, *, restart_at: float = -1) -> tuple[list[int], float]:
        """Which ranges are dropped at these rates (bytes per second), and when first."""
        scheduler = _scheduler(FetchFile("f", "m", 3000 * BLOCK, weights=False), connections=len(rates))
        running = [one for _ in rates if (one := scheduler.next(0.0)) is not None]
        for tick in range(int(seconds * 4)):
            now = tick / 4
            for one, rate in zip(running, rates, strict=True):
                _write(scheduler, one, int(min(one.stop, one.start + rate * now)), now)
            if now == restart_at:
                for one in running:
                    one.restart()
            slow = scheduler.slow(now)
            if slow:
                return [running.index(one) for one in slow], now
        return [], seconds

    def test_under_a_quarter_of_the_median_for_five_seconds(self) -> None:
        dropped, at = self._run([1e6, 1e6, 1e6, 0.24e6], 12)
        assert dropped == [3]
        assert 5 <= at <= 6

    def test_not_at_a_quarter(self) -> None:
        assert self._run([1e6, 1e6, 1e6, 0.26e6], 12)[0] == []

    def test_a_byte_a_second_is_slow(self) -> None:
        assert self._run([1e6, 1, 1e6], 12)[0] == [1]

    def test_two_ranges_have_no_median(self) -> None:
        assert self._run([1e6, 1.0], 12)[0] == []

    def test_equal_rates_are_never_slow(self) -> None:
        assert self._run([3e5] * 8, 12)[0] == []

    def test_one_without_a_byte_is_left_to_its_time_limit(self) -> None:
        assert self._run([1e6, 1e6, 1e6, 0], 12)[0] == []

    def test_a_request_made_again_starts_anew(self) -> None:
        assert self._run([1e6, 1e6, 1e6, 0.1e6], 9, restart_at=4.0)[0] == []

    def test_a_request_made_again_without_a_byte_is_left_to_its_time_limit(self) -> None:
        """What the range had before does not start the clock: connecting again is not slow, it has a time limit."""
        scheduler = _scheduler(FetchFile("f", "m", 3000 * BLOCK, weights=False), connections=4)
        running = [one for _ in range(4) if (one := scheduler.next(0.0)) is not None]
        for now in range(1, 20):
            for one in running:
                if one is not running[-1] or now < 3:
                    _write(scheduler, one, one.position + 100_000, float(now))
            if now == 3:
                running[-1].restart()
            assert scheduler.slow(float(now)) == []

    def test_one_that_recovers_stays(self) -> None:
        scheduler = _scheduler(FetchFile("f", "m", 3000 * BLOCK, weights=False), connections=3)
        running = [one for _ in range(3) if (one := scheduler.next(0.0)) is not None]
        for now in range(1, 20):
            for i, one in enumerate(running):
                step = 100 if i == 2 and now % 4 else 100_000
                _write(scheduler, one, one.position + step, float(now))
            assert scheduler.slow(float(now)) == []

    def test_one_that_soon_runs_alone_is_measured_against_those_that_finished(self) -> None:
        """Four fast ranges are over in half a second, and no more may get ahead of the slow one."""
        scheduler = _scheduler(FetchFile("f", "m", 3000 * BLOCK, weights=False), connections=4)
        slow = scheduler.next(0.0)
        assert slow is not None
        for _ in range(4):
            one = scheduler.next(0.0)
            assert one is not None
            _finish(scheduler, one, 0.5)
        assert scheduler.next(0.5) is None
        for second in range(1, 7):
            _write(scheduler, slow, slow.start + second, float(second))
            found = scheduler.slow(float(second))
        assert found == [slow]
        scheduler.give_back(slow, 6.0)
        again = scheduler.next(6.0)
        assert again is not None
        for second in range(7, 30):
            _write(scheduler, again, again.start + 1000 * second, float(second))
            assert scheduler.slow(float(second)) == [], "the link as a whole may have become slow"


def test_a_huge_file_is_cheap() -> None:
    """600 GB: 143,052 blocks, and no call looks at all of them."""
    size = 600_000_000_000
    scheduler = _scheduler(FetchFile("f", "m", size), connections=64)
    steps = 0
    while (one := scheduler.next(0.0)) is not None:
        assert len(one.state.gaps) <= 2
        _finish(scheduler, one, 0.0)
        steps += 1
    assert scheduler.front("f") == size
    assert steps < 10_000
