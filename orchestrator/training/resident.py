"""A rank that stays: tasks come and leave at its step boundaries, and it ends only when told to.

Whoever comes or leaves, nothing of the others is built again. In a collective gang every rank goes
through the same phases, whichever of them the tasks are on.
"""

import time
from collections.abc import Callable, Sequence
from typing import Protocol

from orchestrator.domain.gang import (
    TaskAdmitted,
    TaskEvent,
    TaskFailed,
    TaskNoted,
    TaskOrder,
    TaskWithdrawn,
)
from orchestrator.training.checkpoint import Checkpointer
from orchestrator.training.instructions import Withdrawal
from orchestrator.training.member import Round
from orchestrator.training.rank_loop import RankLoop
from orchestrator.training.task_run import TaskRun


class Open(Protocol):
    """Makes runs of orders, at their checkpoints; what cannot be opened is told as failed. All
    ranks whose passes are tied call it together, each with its own and with all ranks' orders."""

    def __call__(
        self, orders: Sequence[TaskOrder], all_orders: Sequence[TaskOrder]
    ) -> tuple[list[TaskRun], list[TaskFailed]]: ...


class Resident:
    """`ask` gives a round's instructions (is_idle, request to save that was met); `measure` is told
    the seconds and the positions of each step; `where` names this rank for people."""

    def __init__(
        self,
        loop: RankLoop,
        ask: Callable[[bool, int], Round],
        open_runs: Open,
        checkpointer: Checkpointer,
        tell: Callable[[Sequence[TaskEvent]], None],
        rank: int,
        where: str,
        measure: Callable[[float, int], None] = lambda seconds, positions: None,
    ) -> None:
        self._loop, self._ask, self._open, self._checkpointer = loop, ask, open_runs, checkpointer
        self._tell, self._rank, self._where, self._measure = tell, rank, where, measure
        self._saved = 0

    def run(self) -> None:
        """Work until told to stop."""
        is_idle = False
        while True:
            told = self._ask(is_idle, self._saved)
            for each in told.own.withdrawals:
                self._withdraw(each)
            if told.own.is_stopping:
                self._leave(list(self._loop.runs), keeps=True)
                return
            if told.own.save > self._saved:
                self._checkpointer.keep_now(self._loop.runs)
                self._saved = told.own.save
            self._loop.hand_over()
            if told.all_admits:
                self._admit(told.own.admits, told.all_admits)
            if not is_idle or told.all_admits:
                is_idle = not self._step()

    def _step(self) -> int:
        """A round of the loop; the number of passes that every rank made in it."""
        started, before = time.monotonic(), self._loop.num_positions
        rounds = self._loop.round()
        self._checkpointer.keep(self._loop.runs)
        self._measure(time.monotonic() - started, self._loop.num_positions - before)
        return rounds

    def _admit(self, orders: Sequence[TaskOrder], all_orders: Sequence[TaskOrder]) -> None:
        runs, failures = self._open(orders, all_orders)
        events: list[TaskEvent] = [*failures]
        for run in runs:
            events.append(TaskAdmitted(run.job_id, run.epoch, self._rank, run.step))
            events.append(TaskNoted(run.job_id, run.epoch, f"on {self._where}: {run.start_note}"))
        self._tell(events)
        self._loop.admit(runs)

    def _withdraw(self, each: Withdrawal) -> None:
        runs = [r for r in self._loop.runs if (r.job_id, r.epoch) == (each.job_id, each.epoch)]
        self._leave(runs, each.keeps)

    def _leave(self, runs: Sequence[TaskRun], keeps: bool) -> None:
        if keeps:
            self._checkpointer.keep_now(runs)
        for run in runs:
            self._loop.leave(run)
        self._tell([TaskWithdrawn(run.job_id, run.epoch, run.step) for run in runs])
