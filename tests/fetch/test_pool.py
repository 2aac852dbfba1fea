from dataclasses import dataclass, field

import httpx
import pytest

from yaie_async.fetch.pool import Pool

# anyio's events want a running loop.
pytestmark = pytest.mark.anyio

LIMITS = httpx.Limits(max_connections=2, max_keepalive_connections=2, keepalive_expiry=10)


@dataclass(eq=False)
class Fake:
    origin: str
    quiet: list[bool] = field(default_factory=lambda: [True])

    def is_quiet(self) -> bool:
        return self.quiet[0]


def make_pool(limits: httpx.Limits = LIMITS, clock: list[float] | None = None) -> Pool[Fake]:
    now = clock or [0.0]
    return Pool(lambda origin: Fake(str(origin)), limits, lambda: now[0])


def take(pool: Pool[Fake], origin: str) -> Fake:
    place, closing = pool.enter(origin)
    assert not closing
    assert place.connection is not None
    assert place.served.is_set()
    return place.connection


async def test_an_idle_connection_is_used_again_by_its_origin_only() -> None:
    pool = make_pool()
    first = take(pool, "a")
    assert pool.release(first, keep=True) == []
    assert take(pool, "b") is not first
    assert take(pool, "a") is first


async def test_the_connection_used_last_is_taken_first() -> None:
    pool = make_pool()
    old, new = take(pool, "a"), take(pool, "a")
    pool.release(old, keep=True)
    pool.release(new, keep=True)
    assert take(pool, "a") is new


async def test_a_request_beyond_the_limit_waits_for_the_first_connection_that_comes_back() -> None:
    pool = make_pool()
    first, _ = take(pool, "a"), take(pool, "a")
    (early, _), (late, _) = pool.enter("a"), pool.enter("a")
    assert not early.served.is_set()
    pool.release(first, keep=True)
    assert early.connection is first
    assert late.connection is None


async def test_an_idle_connection_makes_room_for_another_origin() -> None:
    pool = make_pool()
    first, _ = take(pool, "a"), take(pool, "a")
    pool.release(first, keep=True)
    place, closing = pool.enter("b")
    assert closing == [first]
    assert place.connection is not None


async def test_a_closed_connection_makes_room() -> None:
    pool = make_pool()
    first, _ = take(pool, "a"), take(pool, "a")
    place, _ = pool.enter("a")
    assert pool.release(first, keep=False) == [first]
    assert place.connection not in (None, first)


async def test_a_connection_that_was_closed_while_idle_is_replaced() -> None:
    pool = make_pool()
    first = take(pool, "a")
    pool.release(first, keep=True)
    first.quiet[0] = False
    place, closing = pool.enter("a")
    assert closing == [first]
    assert place.connection not in (None, first)


async def test_idle_connections_expire() -> None:
    clock = [0.0]
    pool = make_pool(clock=clock)
    first = take(pool, "a")
    pool.release(first, keep=True)
    clock[0] = 10.0
    _, closing = pool.enter("b")
    assert closing == [first]


async def test_no_more_connections_are_kept_than_the_limit_says() -> None:
    pool = make_pool(httpx.Limits(max_connections=3, max_keepalive_connections=1))
    first, second = take(pool, "a"), take(pool, "a")
    assert pool.release(first, keep=True) == []
    assert pool.release(second, keep=True) == [first]


async def test_a_place_that_is_left_frees_what_it_had() -> None:
    pool = make_pool(httpx.Limits(max_connections=1))
    served, _ = pool.enter("a")
    waiting, _ = pool.enter("a")
    next_one, _ = pool.enter("a")
    assert pool.leave(waiting) == []
    assert pool.leave(served) == [served.connection]
    assert next_one.served.is_set()


async def test_clear_returns_everything_and_a_late_release_closes_nothing_twice() -> None:
    pool = make_pool()
    idle, active = take(pool, "a"), take(pool, "a")
    pool.release(idle, keep=True)
    assert set(pool.clear()) == {idle, active}
    assert pool.release(active, keep=True) == []
    assert not pool.idle
