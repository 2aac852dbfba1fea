"""The plan that users see."""

from yaie_async.core.plan import Plan, PlannedFile


def test_a_plan_adds_up() -> None:
    """A plan sums the cached bytes and the bytes to fetch, and compares these with the free disk space."""
    files = (PlannedFile("a", 10, cached=True), PlannedFile("b", 7, cached=False), PlannedFile("c", 3, cached=False))
    plan = Plan("org/name", "main", "0" * 40, files, free_disk=10, memory=1)
    assert (plan.bytes_cached, plan.bytes_to_fetch, plan.fits) == (10, 10, True)
    assert not Plan("org/name", "main", "0" * 40, files, free_disk=9, memory=1).fits
