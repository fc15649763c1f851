"""A finished run whose result the store does not take."""

from typing import Any

from orchestrator.domain.errors import StoreUnavailable
from orchestrator.domain.gang import TaskFailed, TaskNoted
from orchestrator.domain.job import Fault
from orchestrator.training.hand_over import MAX_TRIES, RETRY_S, HandOver
from orchestrator.training.task_run import TaskRun
from tests.orchestrator.training.conftest import MakeTrainer


class Counter:
    """A hand-over to a store that takes nothing for `num_refusals` times."""

    def __init__(self, num_refusals: int) -> None:
        self.num_left, self.seconds = num_refusals, 0.0
        self.stored: list[TaskRun] = []
        self.events: list[Any] = []
        self.hand_over = HandOver(self.finish, self.events.extend, lambda: self.seconds)

    def finish(self, run: TaskRun) -> None:
        if self.num_left:
            self.num_left -= 1
            raise StoreUnavailable("no space left on device")
        self.stored.append(run)


def test_a_result_is_offered_until_the_store_takes_it_and_noted_once(
    make_trainer: MakeTrainer,
) -> None:
    counter, run = Counter(3), TaskRun("job", make_trainer())
    assert not counter.hand_over.offer(run)
    over = []
    while counter.hand_over.waits(run):
        counter.seconds += RETRY_S
        over += counter.hand_over.offer_again()
    assert over == counter.stored == [run]
    (note,) = counter.events
    assert isinstance(note, TaskNoted)
    assert "cannot be stored yet, and is kept: no space left" in note.text
    assert counter.hand_over.offer_again() == []


def test_the_store_is_not_asked_more_often_than_once_a_second(make_trainer: MakeTrainer) -> None:
    counter = Counter(100)
    counter.hand_over.offer(TaskRun("job", make_trainer()))
    for _ in range(50):
        counter.seconds += RETRY_S / 10
        counter.hand_over.offer_again()
    assert 100 - counter.num_left in (5, 6)


def test_a_result_that_is_never_taken_is_given_up_as_the_machines_fault(
    make_trainer: MakeTrainer,
) -> None:
    counter, run = Counter(1000), TaskRun("job", make_trainer())
    over = [run] if counter.hand_over.offer(run) else []
    while not over:
        counter.seconds += RETRY_S
        over = counter.hand_over.offer_again()
    assert 1000 - counter.num_left == MAX_TRIES
    failure = counter.events[-1]
    assert isinstance(failure, TaskFailed)
    assert (failure.job_id, failure.fault) == ("job", Fault.MACHINE)
    assert failure.reason == "its result could not be stored in 20 tries: no space left on device"
    assert not counter.hand_over.waits(run)


def test_a_run_that_left_is_not_offered_again(make_trainer: MakeTrainer) -> None:
    counter, run = Counter(1), TaskRun("job", make_trainer())
    counter.hand_over.offer(run)
    counter.hand_over.forget(run)
    counter.seconds += RETRY_S
    assert counter.hand_over.offer_again() == counter.stored == []
