"""One rank's questions to a real board; ranks that ask together are in test_data_parallel.py."""

from typing import Any

import pytest

from orchestrator.domain.gang import TaskOrder, TaskProgress
from orchestrator.training.board import Board
from orchestrator.training.instructions import Instructions
from orchestrator.training.member import IDLE_S, Member, StaleGroup
from tests.orchestrator.training.conftest import make_spec


def order(job_id: str) -> TaskOrder:
    return TaskOrder(job_id, make_spec(), {}, "f" * 64, 1.0)


class Line:
    """A board, a member of its group, and how often it paused; the third pause brings an order."""

    def __init__(self) -> None:
        self.board, self.num_pauses = Board(60.0), 0
        self.board.start_group()
        self.member = Member(self.call, self.call, 0, 1, is_collective=False, pause=self.pause)

    def call(self, method: str, *arguments: Any) -> Any:
        return getattr(self.board, method)(*arguments)

    def pause(self, seconds: float) -> None:
        assert seconds == IDLE_S
        self.num_pauses += 1
        if self.num_pauses == 3:
            self.board.admit([order("late")])


def test_a_rank_with_work_never_waits() -> None:
    line = Line()
    line.member.join("host")
    assert line.member.ask(is_idle=False, saved=0).own == Instructions()
    line.board.admit([order("job")])
    told = line.member.ask(is_idle=False, saved=0)
    assert [each.job_id for each in told.all_admits] == ["job"]
    assert line.num_pauses == 0


def test_an_idle_rank_waits_for_something_to_do() -> None:
    line = Line()
    line.member.join("host")
    told = line.member.ask(is_idle=True, saved=0)
    assert [each.job_id for each in told.own.admits] == ["late"]
    assert line.num_pauses == 3


def test_a_rank_whose_place_is_taken_ends() -> None:
    line, other = Line(), Line()
    line.member.join("host")
    other.board = line.board
    with pytest.raises(StaleGroup):
        other.member.join("host")
    line.board.start_group()
    with pytest.raises(StaleGroup):
        line.member.ask(is_idle=False, saved=0)
    other.member.join("host")


def test_events_and_beats_are_told_under_the_members_own_name() -> None:
    line = Line()
    line.member.join("host")
    line.board.admit([order("job")])
    line.member.ask(is_idle=False, saved=0)
    line.member.post([TaskProgress("job", 1, 2)])
    line.member.post_surely([TaskProgress("job", 2, 2)])
    assert line.member.beat("training", True, 0.5, 10.0) is None
    status = line.board.take()
    assert (status.num_workers, status.step_s) == (1, 0.5)
    assert TaskProgress("job", 2, 2) in status.events
    line.member.fail("broken")
    assert line.board.take().error == "broken"
