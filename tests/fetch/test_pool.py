import ssl

import pytest

from yaie_async.fetch import pool as pools
from yaie_async.fetch.connection import Connection
from yaie_async.fetch.origin import Origin
from yaie_async.fetch.pool import Pool
from yaie_async.fetch.wire import Wire

A, B = Origin("http", "a", 80), Origin("http", "b", 80)


class FakeWire(Wire):
    """A wire without a socket that says what the test wants."""

    quiet = True
    closed = 0

    def is_quiet(self) -> bool:
        return self.quiet

    def abort(self) -> None:
        self.closed += 1


class Fake(Connection):
    def __init__(self, origin: Origin) -> None:
        super().__init__(origin, ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
        self.wire: FakeWire = FakeWire(None, origin.host)
        self.reusable = True

    def is_reusable(self) -> bool:
        return self.reusable


def take(pool: Pool, origin: Origin) -> Fake:
    connection = pool.take(origin)
    assert isinstance(connection, Fake)
    assert not connection.wire.closed
    return connection


def test_an_idle_connection_is_used_again_by_its_origin_only() -> None:
    pool = Pool(Fake, 2)
    first = take(pool, A)
    pool.give_back(first)
    assert take(pool, B) is not first
    assert take(pool, A) is first


def test_the_connection_used_last_is_taken_first() -> None:
    pool = Pool(Fake, 2)
    old, new = take(pool, A), take(pool, A)
    pool.give_back(old)
    pool.give_back(new)
    assert take(pool, A) is new


def test_the_oldest_idle_connection_makes_room_for_another_origin() -> None:
    pool = Pool(Fake, 2)
    first, second = take(pool, A), take(pool, A)
    pool.give_back(first)
    pool.give_back(second)
    take(pool, B)
    assert (first.wire.closed, second.wire.closed) == (1, 0)
    assert take(pool, A) is second


def test_a_connection_that_can_not_be_used_again_is_closed() -> None:
    pool = Pool(Fake, 2)
    first = take(pool, A)
    first.reusable = False
    pool.give_back(first)
    assert first.wire.closed == 1
    assert take(pool, A) is not first


def test_a_connection_that_was_closed_while_idle_is_replaced() -> None:
    pool = Pool(Fake, 2)
    first = take(pool, A)
    pool.give_back(first)
    first.wire.quiet = False
    assert take(pool, A) is not first
    assert first.wire.closed == 1


def test_idle_connections_expire(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = Pool(Fake, 2)
    first = take(pool, A)
    pool.give_back(first)
    monkeypatch.setattr(pools, "EXPIRY", 0.0)
    assert take(pool, A) is not first
    assert first.wire.closed == 1


def test_no_more_connections_are_kept_than_the_limit_says() -> None:
    """Requests beyond it get a connection all the same: the scheduler sends none."""
    pool = Pool(Fake, 1)
    first, second = take(pool, A), take(pool, A)
    pool.give_back(first)
    assert first.wire.closed == 1
    pool.give_back(second)
    assert second.wire.closed == 0
    assert take(pool, A) is second


def test_clear_returns_everything_and_a_late_return_closes_nothing_twice() -> None:
    pool = Pool(Fake, 2)
    idle, active = take(pool, A), take(pool, A)
    pool.give_back(idle)
    assert set(pool.clear()) == {idle, active}
    pool.give_back(active)
    assert active.wire.closed == 0
    assert take(pool, A) not in (idle, active)
