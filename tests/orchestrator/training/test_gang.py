"""The driver's side of a gang, at a real board that is called when the test says so; no Ray run."""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, NodeDiedError, RaySystemError

from orchestrator.domain.errors import ClusterUnavailable
from orchestrator.domain.gang import TaskNoted, TaskOrder, TaskWithdrawn
from orchestrator.training.board import Board
from orchestrator.training.gang import LAST_WORDS_S, NODES_TIMEOUT_S, RayGang, RayGangLauncher
from orchestrator.training.members import STARTING
from orchestrator.training.worker import WorkerOptions
from tests.orchestrator.training.conftest import make_spec


class Answer:
    """A reference to what a call will have returned."""

    value: Any = None
    is_there = False

    def give(self, value: Any) -> None:
        self.value, self.is_there = value, True


class Actor:
    """A handle of a board. It does what it is told in order, while `is_awake`."""

    def __init__(self) -> None:
        self.board, self.is_awake = Board(1e9), True
        self.called: list[str] = []
        self._calls: list[tuple[Answer, Callable[[], Any]]] = []

    def __getattr__(self, method: str) -> Any:
        return _Method(self, method)

    def call(self, method: str, arguments: Sequence[Any]) -> Answer:
        answer = Answer()
        self.called.append(method)
        self._calls.append((answer, lambda: getattr(self.board, method)(*arguments)))
        self.work()
        return answer

    def work(self) -> None:
        while self.is_awake and self._calls:
            answer, do = self._calls.pop(0)
            answer.give(do())

    def die(self, error: Exception) -> None:
        for answer, _ in self._calls:
            answer.give(error)
        self._calls = []


class _Method:
    def __init__(self, actor: Actor, name: str) -> None:
        self._actor, self._name = actor, name

    def remote(self, *arguments: Any) -> Answer:
        return self._actor.call(self._name, arguments)


class Run:
    """Ray's train run, and what it is asked for."""

    def __init__(self) -> None:
        self.ended, self.num_aborts = threading.Event(), 0

    def fit(self) -> None:
        self.ended.wait()

    def abort(self) -> None:
        self.num_aborts += 1


class Site:
    """A gang on an actor, by a clock of its own."""

    def __init__(self) -> None:
        self.actor, self.run, self.seconds = Actor(), Run(), 0.0
        self.gang = RayGang(self.run, self.actor, lambda: self.seconds)

    def end(self) -> None:
        self.run.ended.set()
        self.gang._thread.join()

    def note(self, *texts: str) -> None:
        for text in texts:
            self.actor.board._events.add(TaskNoted("j", 1, text))


def _wait(
    answers: Sequence[Answer], num_returns: int = 1, timeout: float | None = None
) -> tuple[list[Answer], list[Answer]]:
    if len(answers) < num_returns or not answers:
        raise ValueError("there are not so many")
    assert timeout is not None
    ready = [answer for answer in answers if answer.is_there]
    return ready, [answer for answer in answers if not answer.is_there]


def _get(answer: Answer) -> Any:
    assert answer.is_there, "this would have blocked"
    if isinstance(answer.value, Exception):
        raise answer.value
    return answer.value


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "wait", _wait)
    monkeypatch.setattr(ray, "get", _get)


@pytest.fixture
def site() -> Site:
    return Site()


def order(job_id: str = "j") -> TaskOrder:
    return TaskOrder(job_id, make_spec(), {}, "f" * 64, 1.0, epoch=1)


def test_before_the_board_has_answered_the_gang_is_starting(site: Site) -> None:
    site.actor.is_awake = False
    site.seconds = 9
    status = site.gang.poll()
    assert (status.is_running, status.stage, status.stage_s) == (True, STARTING, 9)


def test_a_slow_board_costs_no_event_and_ends_nothing(site: Site) -> None:
    site.gang.admit([order()])
    board = site.actor.board
    board.start_group()
    board.join("group", 0, 1, "host")
    site.gang.poll()
    site.note("first")
    site.gang.poll()
    site.actor.is_awake = False
    assert [e.text for e in site.gang.poll().events if isinstance(e, TaskNoted)] == ["first"]
    site.note("second")
    for site.seconds in (10.0, 100.0, 1000.0):
        status = site.gang.poll()
        assert (status.is_running, status.error, status.events) == (True, None, ())
        assert status.silent_s["j"] >= site.seconds, "nobody says that its rank lives"
    assert site.actor.called.count("take") == 3, "one question at a time"
    site.actor.is_awake = True
    site.actor.work()
    assert site.gang.poll().events == (TaskNoted("j", 1, "second"),)


def test_what_is_told_arrives_in_order_and_waits_for_nothing(site: Site) -> None:
    site.actor.is_awake = False
    site.gang.admit([order("a")])
    site.gang.withdraw("a", 1, keeps=True)
    site.gang.finish()
    assert site.actor.called == ["admit", "withdraw", "stop"]
    site.gang.poll()
    site.actor.is_awake = True
    site.actor.work()
    assert site.gang.poll().events == (TaskWithdrawn("a", 1, 0),)


def test_the_last_status_of_a_run_that_ended_carries_its_last_events(site: Site) -> None:
    site.gang.poll()
    site.note("last words")
    site.end()
    told = []
    for _ in range(9):
        status = site.gang.poll()
        told += [event.text for event in status.events if isinstance(event, TaskNoted)]
        if not status.is_running:
            break
    assert (told, status.is_running, status.error) == (["last words"], False, None)


def test_the_last_answer_is_waited_for_but_not_for_ever(site: Site) -> None:
    site.actor.is_awake = False
    site.gang.poll()
    site.end()
    assert site.gang.poll().is_running
    site.seconds = LAST_WORDS_S + 1
    assert not site.gang.poll().is_running


def test_a_dead_board_ends_the_gang_for_good(site: Site) -> None:
    site.actor.is_awake = False
    site.gang.poll()
    site.actor.die(ActorUnavailableError("no route", b"0" * 16))
    assert site.gang.poll().is_running, "it may come back"
    site.actor.die(ActorDiedError())
    for _ in range(3):
        status = site.gang.poll()
        assert not status.is_running
        assert (status.error or "").startswith("the gang's board is gone: ")
        assert "\n" not in (status.error or "")


def test_a_gang_that_its_board_has_given_up_is_ended_once_without_waiting(site: Site) -> None:
    site.actor.board._error = "its workers were lost 4 times in a row"
    site.actor.board.lead(site.run)
    for _ in range(5):
        status = site.gang.poll()
        assert (status.is_running, status.error) == (True, None)
    assert site.run.num_aborts == site.actor.called.count("end") == 1
    site.end()
    while status.is_running:
        status = site.gang.poll()
    assert status.error == "its workers were lost 4 times in a row"


def _machines(monkeypatch: pytest.MonkeyPatch, *answers: Any) -> RayGangLauncher:
    """A launcher on a cluster whose machines answer so; None: not in time."""

    def measured(node: dict[str, Any]) -> Answer:
        answer = Answer()
        if answers[node["NodeID"]] is not None:
            answer.give(answers[node["NodeID"]])
        return answer

    nodes = [{"NodeID": i, "Alive": True, "Resources": {"CPU": 2.0}} for i in range(len(answers))]
    monkeypatch.setattr(ray, "nodes", lambda: [*nodes, {"Alive": False}])
    monkeypatch.setattr("orchestrator.training.gang._measured", measured)
    nowhere: Any = None
    return RayGangLauncher(nowhere, "", nowhere, nowhere, WorkerOptions(1, 1.0))


def test_machines_that_die_or_hang_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    launcher = _machines(monkeypatch, "first", NodeDiedError("gone"), None, "last")
    monkeypatch.setattr(ray, "wait", lambda asked, **_: ([a for a in asked if a.is_there], []))
    assert launcher.nodes() == ["first", "last"]


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ([NodeDiedError("it is gone")], "it is gone"),
        ([None], f"no machine answered within {NODES_TIMEOUT_S:g} s"),
        ([], "not so many"),
    ],
)
def test_a_cluster_without_machines_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, answers: list[Any], reason: str
) -> None:
    with pytest.raises(ClusterUnavailable, match=f"{reason}\n  Look at the cluster with `ray"):
        _machines(monkeypatch, *answers).nodes()


def test_a_head_that_does_not_answer_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    launcher = _machines(monkeypatch, "first")

    def away() -> Any:
        raise RaySystemError("no head")

    monkeypatch.setattr(ray, "nodes", away)
    with pytest.raises(ClusterUnavailable, match="no head"):
        launcher.nodes()
