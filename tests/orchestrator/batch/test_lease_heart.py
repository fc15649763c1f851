"""A lease is kept while its holder works; what takes it is heard."""

import threading

import pytest

from orchestrator.batch.lease_heart import LeaseHeart
from orchestrator.domain.errors import StaleLease, TuttiError


class Clock:
    """Time that moves when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def failing(error: TuttiError) -> LeaseHeart:
    def renew() -> None:
        raise error

    return LeaseHeart(renew, 60.0, Clock())


def test_a_lease_that_another_has_is_lost_at_once() -> None:
    heart = failing(StaleLease("taken over"))
    heart.beat()
    with pytest.raises(StaleLease, match="taken over"):
        heart.check()


def test_a_database_that_is_away_costs_the_lease_when_that_would_have_ended() -> None:
    clock, is_away = Clock(), [True]

    def renew() -> None:
        if is_away[0]:
            raise TuttiError("the database cannot be used")

    heart = LeaseHeart(renew, 60.0, clock)
    clock.now = 59.0
    heart.beat()
    heart.check()
    is_away[0] = False
    heart.beat()
    is_away[0], clock.now = True, 118.0
    heart.beat()
    heart.check()
    clock.now = 120.0
    heart.beat()
    with pytest.raises(TuttiError, match="the database cannot be used"):
        heart.check()


def test_it_beats_by_itself_and_stops() -> None:
    beaten = threading.Event()
    with LeaseHeart(beaten.set, 0.01) as heart:
        assert beaten.wait(60)
        heart.check()
