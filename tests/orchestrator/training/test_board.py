from dataclasses import dataclass

from orchestrator.domain.gang import (
    StageReached,
    TaskCheckpointed,
    TaskFailed,
    TaskFinished,
    TaskProgress,
)
from orchestrator.training.board import Board


@dataclass(frozen=True)
class Anything:
    """Stands for a trained prompt, which the board does not look at."""


def finished(job_id: str) -> TaskFinished:
    return TaskFinished(job_id, Anything())  # type: ignore[arg-type]


def test_events_are_handed_over_once_in_order() -> None:
    board = Board()
    events = [StageReached(0, "training"), TaskProgress("j", 1, 2), finished("j")]
    board.post(events[:2])
    board.post(events[2:])
    assert board.take() == events
    assert board.take() == []


def test_a_second_end_of_a_task_is_dropped_even_after_the_first_was_taken() -> None:
    board = Board()
    board.post([finished("j")])
    board.take()
    board.post([TaskFailed("j", "again"), finished("j"), TaskFailed("k", "bad")])
    assert board.take() == [TaskFailed("k", "bad")]
    assert board.ended() == frozenset({"j", "k"})


def test_progress_ends_nothing() -> None:
    board = Board()
    board.post([TaskProgress("j", 1, 2)])
    assert board.ended() == frozenset()


def test_workers_are_asked_to_leave() -> None:
    board = Board()
    assert not board.is_stopping()
    board.stop()
    assert board.is_stopping()


def test_the_last_checkpoint_of_each_job_stays_known() -> None:
    board = Board()
    first, second = TaskCheckpointed("j", 1, "a"), TaskCheckpointed("j", 2, "b")
    board.post([first, TaskCheckpointed("k", 1, "c"), second])
    assert board.take()[-1] == second
    assert board.checkpoints() == {"j": "b", "k": "c"}
