"""Gangs as other processes see them, and who is asked to drain."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import Connection

from orchestrator.domain.errors import UnknownName
from orchestrator.domain.gang import GangOrder
from orchestrator.domain.job import Fault, Lease
from orchestrator.registry.database import Database
from orchestrator.registry.errors import DatabaseUnavailable
from orchestrator.registry.gang_book import GangBook
from orchestrator.registry.job_queue import JobQueue


@pytest.fixture
def book(database: Database) -> GangBook:
    return GangBook(database)


def order(name: str = "gang-1") -> GangOrder:
    return GangOrder(name, "b" * 64, 128, "0.1.0", 3, 1, 2, sharding="it does not fit")


def test_opened_gang_is_starting_without_workers(book: GangBook) -> None:
    book.open(order(), "host:1")
    (gang,) = book.list()
    assert (gang.name, gang.base_fingerprint, gang.zero_stage) == ("gang-1", "b" * 64, 3)
    assert (gang.holder, gang.sharding, gang.stage) == ("host:1", "it does not fit", "starting")
    assert (gang.num_workers, gang.num_jobs, gang.is_drain_asked) == (0, 0, False)
    assert gang.ended_at is None


def test_beat_tells_how_a_gang_does_and_counts_its_jobs(
    book: GangBook, queue: JobQueue, running: Callable[..., Lease]
) -> None:
    book.open(order(), "host:1")
    running(nonce="a")
    queue.release(running(nonce="b"), "room is needed", Fault.PREEMPTION)
    assert book.beat("gang-1", None, 2, 0.5, 1000.0) is False
    (gang,) = book.list()
    assert (gang.stage, gang.num_workers, gang.num_jobs) == (None, 2, 1)
    assert (gang.step_s, gang.tokens_per_s) == (0.5, 1000.0)
    assert gang.seen_at > gang.started_at
    assert book.beat("gang-9", None, 2, 0.5, 1000.0) is False


def test_gang_whose_opening_was_lost_is_opened_by_its_beat(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    book = GangBook(database)

    @contextmanager
    def away() -> Iterator[Connection]:
        raise DatabaseUnavailable("the database cannot be used")
        yield

    with monkeypatch.context() as patch, pytest.raises(DatabaseUnavailable):
        patch.setattr(database, "write", away)
        book.open(order(), "host:1")
    assert book.beat("gang-1", "loading", 1, 0.0, 0.0) is False
    (gang,) = book.list()
    assert (gang.holder, gang.sharding, gang.stage) == ("host:1", "it does not fit", "loading")
    book.ask_drain("gang-1")
    assert book.beat("gang-1", None, 2, 0.5, 1000.0) is True


def test_asked_drain_is_told_with_the_next_beat(book: GangBook) -> None:
    book.open(order(), "host:1")
    book.ask_drain("gang-1")
    assert book.list()[0].is_drain_asked
    assert book.beat("gang-1", None, 2, 0.5, 1000.0) is True


def test_gang_that_is_not_up_cannot_be_drained(book: GangBook) -> None:
    with pytest.raises(UnknownName, match="there is none yet"):
        book.ask_drain("gang-1")
    book.open(order(), "host:1")
    book.open(order("gang-2"), "host:1")
    book.close("gang-2")
    with pytest.raises(UnknownName, match=r"no gang up 'gang-2'; did you mean 'gang-1'"):
        book.ask_drain("gang-2")


def test_closed_gang_is_history_with_its_reason(book: GangBook) -> None:
    book.open(order(), "host:1")
    book.open(order("gang-2"), "host:1")
    book.close("gang-1", "a worker was killed")
    book.close("gang-1")
    assert [gang.name for gang in book.list()] == ["gang-2"]
    assert [gang.name for gang in book.list(include_ended=True)] == ["gang-2", "gang-1"]
    assert [gang.name for gang in book.list(include_ended=True, limit=1)] == ["gang-2"]
    ended = book.list(include_ended=True)[1]
    assert (ended.error, ended.ended_at is not None) == ("a worker was killed", True)


def test_gangs_of_dead_controllers_and_silent_ones_are_buried(book: GangBook) -> None:
    for name, holder in {"a": "dead", "b": "living", "c": "dead"}.items():
        book.open(order(name), holder)
    assert book.bury(lambda holder: False, 3600) == []
    assert book.bury(lambda holder: holder == "dead", 3600) == ["a", "c"]
    assert {gang.error for gang in book.list(include_ended=True)} == {
        None,
        "the controller that ran it is gone",
    }
    assert book.bury(lambda holder: False, -1) == ["b"]
    assert book.list() == []


def test_buried_gang_that_beats_is_up_again(book: GangBook) -> None:
    book.open(order(), "host:1")
    book.bury(lambda holder: False, -1)
    book.beat("gang-1", None, 1, 0.5, 10.0)
    (gang,) = book.list()
    assert (gang.error, gang.ended_at) == (None, None)
