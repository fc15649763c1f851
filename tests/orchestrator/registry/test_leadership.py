"""One controller leads at a time; its term grows with every new leader."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from orchestrator.registry.database import Database
from orchestrator.registry.leadership import MLFLOW, Leadership, Turn


def alive(holder: str) -> bool:
    return False


@pytest.fixture
def leadership(database: Database) -> Leadership:
    return Leadership(database)


def test_first_leads_and_stays_in_its_term(leadership: Leadership) -> None:
    assert leadership.leader() is None
    assert [leadership.lead("a", 60, alive) for _ in range(3)] == [1, 1, 1]
    leader = leadership.leader()
    assert leader is not None
    assert (leader.holder, leader.term, leader.is_expired) == ("a", 1, False)


def test_second_leads_when_the_first_has_expired(leadership: Leadership) -> None:
    leadership.lead("a", 60, alive)
    assert leadership.lead("b", 60, alive) is None
    assert leadership.lead("a", -1, alive) == 1
    leader = leadership.leader()
    assert leader is not None
    assert leader.is_expired
    assert leadership.lead("b", 60, alive) == 2
    assert leadership.lead("a", 60, alive) is None


def test_dead_leader_is_followed_at_once(leadership: Leadership) -> None:
    leadership.lead("a", 60, alive)
    assert leadership.lead("b", 60, lambda holder: holder == "a") == 2


def test_leader_that_no_other_followed_keeps_its_term(leadership: Leadership) -> None:
    leadership.lead("a", -1, alive)
    assert leadership.lead("a", 60, alive) == 1


def test_resigned_leader_is_followed_at_once(leadership: Leadership) -> None:
    leadership.lead("a", 60, alive)
    leadership.resign("b")
    assert leadership.lead("b", 60, alive) is None
    leadership.resign("a")
    assert leadership.leader() is None
    assert leadership.lead("a", 60, alive) == 2


def test_leader_that_changes_while_it_is_asked_about_is_left_alone(
    leadership: Leadership,
) -> None:
    leadership.lead("a", 60, alive)

    def replaced(holder: str) -> bool:
        leadership.resign("a")
        leadership.lead("c", 60, alive)
        return True

    assert leadership.lead("b", 60, replaced) is None
    leader = leadership.leader()
    assert leader is not None
    assert leader.holder == "c"


@pytest.mark.parametrize("is_new", [True, False])
def test_of_many_at_once_one_leads(leadership: Leadership, is_new: bool) -> None:
    if not is_new:
        leadership.lead("old", -1, alive)
    with ThreadPoolExecutor(8) as pool:
        terms = list(pool.map(lambda i: leadership.lead(f"{i}", 60, alive), range(16)))
    assert [term for term in terms if term is not None] == [1 if is_new else 2]


def test_processes_take_turns_whoever_leads_in_something_else(database: Database) -> None:
    Leadership(database).lead("b", 60, alive)
    first, second = (Turn(Leadership(database, MLFLOW), each, alive) for each in ("a", "b"))
    assert [first.take(), first.take(), second.take()] == [True, True, False]
    second.end()
    assert first.take()
    first.end()
    assert [second.take(), first.take()] == [True, False]
