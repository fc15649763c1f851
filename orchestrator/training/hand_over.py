"""Finished runs on their way to the store: one that takes nothing now is tried again, for a while.

A run that waits for it costs its neighbours nothing, and keeps what it has learned.
"""

import time
from collections.abc import Callable, Sequence

from orchestrator.domain.errors import StoreUnavailable
from orchestrator.domain.gang import TaskEvent, TaskFailed, TaskNoted
from orchestrator.domain.job import Fault
from orchestrator.training.task_run import TaskRun

MAX_TRIES = 20
RETRY_S = 1.0


class HandOver:
    """`finish` stores a run's result and tells it, or raises StoreUnavailable. `now` gives seconds
    that only grow."""

    def __init__(
        self,
        finish: Callable[[TaskRun], None],
        post: Callable[[Sequence[TaskEvent]], None],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._finish, self._post, self._now = finish, post, now
        self._tries: dict[TaskRun, int] = {}
        self._last = now()

    def waits(self, run: TaskRun) -> bool:
        """Whether a run is held here."""
        return run in self._tries

    def offer(self, run: TaskRun) -> bool:
        """Try to hand a run over; whether it is done with: stored, or given up with TaskFailed."""
        self._last = self._now()
        tries = self._tries.pop(run, 0) + 1
        try:
            self._finish(run)
        except StoreUnavailable as error:
            if tries >= MAX_TRIES:
                self._post([_given_up(run, tries, error)])
                return True
            if tries == 1:
                text = f"its result cannot be stored yet, and is kept: {error}"
                self._post([TaskNoted(run.job_id, run.epoch, text)])
            self._tries[run] = tries
            return False
        return True

    def offer_again(self) -> list[TaskRun]:
        """Try those that wait, if it is time; returns those that are done with."""
        if not self._tries or self._now() < self._last + RETRY_S:
            return []
        return [run for run in list(self._tries) if self.offer(run)]

    def forget(self, run: TaskRun) -> None:
        """A run has left before its result was stored."""
        self._tries.pop(run, None)


def _given_up(run: TaskRun, tries: int, error: StoreUnavailable) -> TaskFailed:
    reason = f"its result could not be stored in {tries} tries: {error}"
    return TaskFailed(run.job_id, reason, run.epoch, Fault.MACHINE)
