"""What a slow iterator gives is taken as it arrives, and what it raises is raised."""

import threading
from collections.abc import Iterator

import pytest

from orchestrator.batch.arrivals import Arrivals


def test_nobody_waits_for_what_is_not_there_yet() -> None:
    go = threading.Event()

    def items() -> Iterator[int]:
        yield 1
        assert go.wait(60)
        yield 2

    arrivals = Arrivals(items())
    assert arrivals.take(60) == [1]
    assert arrivals.take(0.01) == []
    assert not arrivals.is_over
    go.set()
    assert arrivals.take(60) == [2]
    while not arrivals.is_over:
        assert arrivals.take(60) == []


def test_what_came_before_a_failure_is_taken_first() -> None:
    def items() -> Iterator[int]:
        yield from (1, 2, 3)
        raise ValueError("broken")

    arrivals = Arrivals(items())
    taken: list[int] = []
    with pytest.raises(ValueError, match="broken"):
        while True:
            assert not arrivals.is_over
            taken += arrivals.take(60)
    assert taken == [1, 2, 3]
