"""The board: the one actor a gang's workers speak to, and the driver, and Ray's own controller.

It holds every order that is not done, on one rank or waiting for one. Workers come in groups, each
under an incarnation of its own. What is told under another incarnation than the present one, or of
a task under another epoch than the one that is held, is refused: a worker that slept through the
loss of its tasks changes nothing. After a group is lost, who may have ended it is tried alone, when
the others are saved. No Ray and no waiting here: a plain class.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from orchestrator.domain.gang import (
    GangStatus,
    StageReached,
    TaskAdmitted,
    TaskCheckpointed,
    TaskEvent,
    TaskFailed,
    TaskFinished,
    TaskNoted,
    TaskOrder,
    TaskProgress,
    TaskWithdrawn,
)
from orchestrator.domain.job import Fault
from orchestrator.domain.placement import EVERY_RANK, place
from orchestrator.training.event_log import EventLog
from orchestrator.training.held_task import HeldTask
from orchestrator.training.instructions import Instructions, Withdrawal
from orchestrator.training.losses import Losses
from orchestrator.training.members import Members

#: Worker groups that may be lost under a task before it has to leave.
MAX_LOSSES = 3
STOPPED = "the gang was told to end"


class Board:
    """Orders in, instructions out; events in, statuses out. `now` gives seconds that only grow; a
    rank that was not heard of for `silence_s` holds its group up no longer, and a driver that asked
    nothing for as long is gone: all tasks are saved and leave."""

    def __init__(self, silence_s: float, now: Callable[[], float] = time.monotonic) -> None:
        self._members, self._now = Members(silence_s, now), now
        self._taken = now()
        self._tasks: dict[tuple[str, int], HeldTask] = {}
        self._events = EventLog()
        self._withdrawals: dict[int, list[Withdrawal]] = {}
        self._is_stopping = False
        self._end: str | None = None  # why all workers must go at once
        self._error: str | None = None  # why no worker group may be started any more
        self._train_run: Any = None
        self._save = 0
        self._losses = Losses(self._now)

    # The driver's part.

    def admit(self, orders: Sequence[TaskOrder]) -> None:
        """Hold these orders. One of a job that is held already takes the place of an older epoch's,
        and is nothing new under the same."""
        fresh = []
        for order in orders:
            epochs = [epoch for job_id, epoch in self._tasks if job_id == order.job_id]
            if any(epoch >= order.epoch for epoch in epochs):
                continue
            for epoch in epochs:
                self.withdraw(order.job_id, epoch, keeps=False)
            task = HeldTask(order)
            self._tasks[task.key] = task
            fresh.append(task)
        if self._is_stopping:
            self._withdraw_waiting()
        self._place(fresh)

    def withdraw(self, job_id: str, epoch: int, keeps: bool) -> None:
        """Let a task leave. It is gone at once unless a rank has it and it `keeps`."""
        task = self._tasks.get((job_id, epoch))
        if task is None:
            self._events.add(TaskWithdrawn(job_id, epoch, 0))
            return
        if keeps and task.leaves:
            return
        for rank in task.ranks:
            self._withdrawals.setdefault(rank, []).append(Withdrawal(job_id, epoch, keeps))
        task.leaves = True
        if not keeps or not task.ranks:
            self._drop(task)

    def stop(self) -> None:
        """Let all tasks leave with a last checkpoint, and the workers after them."""
        self._is_stopping = True
        self._withdraw_waiting()

    def end(self, reason: str) -> Any:
        """Refuse everything from now on; workers end themselves at their next beat. Returns Ray's
        train run (gang_watch.TrainRun), None before that has told of itself."""
        self._end = self._end or reason
        return self._train_run

    def take(self) -> GangStatus:
        """What came since the last call, and how things stand. A whole group that is silent is an
        `error`, for there is nobody left to end it."""
        self._taken = self._now()
        members = self._members
        if members.are_all_silent:
            self._error = self._error or f"no worker was heard of for {members.silence_s:g} s"
        return GangStatus(
            events=self._events.take(),
            error=self._error,
            num_workers=members.num_joined,
            silent_s={
                task.order.job_id: members.silent_s(None if task.rank == EVERY_RANK else task.rank)
                for task in self._tasks.values()
                if task.rank is not None
            },
            stage=members.stage,
            stage_s=members.stage_s,
            step_s=members.step_s,
            tokens_per_s=members.tokens_per_s,
        )

    # The part of Ray's train controller (gang_watch.py).

    def lead(self, train_run: Any) -> str | None:
        """Know who starts the workers; an answer says why nobody shall."""
        self._train_run = train_run
        return self._end

    def ask_save(self) -> int:
        """Ask all ranks to store their tasks' states now; returns the request's number."""
        self._save += 1
        return self._save

    def is_saved(self, number: int) -> bool:
        """Whether every rank that trains and is heard of has done so."""
        return self._members.all_saved(number)

    def lose(self, reason: str) -> None:
        """A worker group has failed; why may be known already."""
        self._losses.reason = self._losses.reason or reason

    def start_group(self) -> str | None:
        """A worker group is about to start, the one before has ended: all orders wait for a rank
        again, but those that have cost too many groups. An answer says why it must not."""
        self._end_if_abandoned()
        if self._members.is_up and not self._tasks:
            self._losses.progress()
        for task in list(self._tasks.values()):
            if task.leaves:
                self._drop(task)
            elif task.ranks:
                self._events.add(TaskNoted(*task.key, self._restart_note()))
                if self._losses.reason:
                    self._charge(task)
            task.rank, task.ranks, task.has_stepped = None, set(), False
        too_many = self._losses.start_again()
        self._error = self._error or too_many
        self._withdrawals = {}
        self._members.clear()
        return self._end or self._error or (STOPPED if self._is_stopping else None)

    # The workers' part.

    def join(self, incarnation: str, rank: int, world_size: int, host: str) -> bool:
        """A rank of a worker group is there; with its first one all orders are placed. False: the
        gang has ended, or another group is at work."""
        self._end_if_abandoned()
        if self._end or self._is_stopping:
            return False
        if not self._members.join(incarnation, rank, world_size, host):
            return False
        self._place([task for task in self._tasks.values() if task.rank is None])
        return True

    def sync(
        self, incarnation: str, ranks: Sequence[int], saved: int = 0
    ) -> list[Instructions] | None:
        """What each of `ranks` is to do now; they have met the request to save `saved`. None: they
        are to end, for they are not of this group."""
        if self._end or not self._members.is_present(incarnation):
            return None
        for rank in ranks:
            self._members.hear(rank, saved)
        self._end_if_abandoned()
        self._place_anew_what_waits_for_the_silent()
        return [self._instructions(rank) for rank in ranks]

    def post(self, incarnation: str, events: Sequence[TaskEvent]) -> bool:
        """Take events, of those tasks that are held; False: they are not of this group."""
        if self._end or not self._members.is_present(incarnation):
            return False
        for event in events:
            task = self._tasks.get((event.job_id, event.epoch))
            if task is not None and task.ranks:
                self._take_in(event, task)
        return True

    def beat(
        self,
        incarnation: str,
        rank: int,
        stage: str,
        is_ready: bool,
        step_s: float = 0.0,
        tokens_per_s: float = 0.0,
    ) -> str | None:
        """A rank lives; `is_ready` once its start is behind it. An answer says why its process must
        end at once."""
        if self._end:
            return self._end
        if not self._members.is_present(incarnation):
            return "another worker group has taken its place"
        if self._members.beat(rank, stage, is_ready, step_s, tokens_per_s):
            self._events.add(StageReached(rank, stage))
        if reason := self._members.whom_it_waits_for(rank):
            self._losses.reason = reason
        return reason

    def fail_rank(self, incarnation: str, rank: int, reason: str) -> bool:
        """A rank cannot work, and would not if it were started again: its tasks fail here, all
        tasks if its start failed, and the gang ends with the `reason`. Whose fault it is nobody
        knows, so it is the machine's."""
        if self._end or not self._members.is_present(incarnation):
            return False
        for task in list(self._tasks.values()):
            if task.is_on(rank) or not self._members.is_ready(rank):
                self._fail(task, reason)
        self._error = self._error or reason
        return True

    def _take_in(self, event: TaskEvent, task: HeldTask) -> None:
        self._events.add(event)
        match event:
            case TaskAdmitted():
                task.step = event.step
            case TaskProgress():
                task.reach(event.step)
                task.share_done = min(1.0, event.step / max(1, event.num_steps))
                self._losses.progress()
                if self._losses.is_save_due():
                    self.ask_save()
            case TaskCheckpointed():
                task.order = replace(task.order, checkpoint=event.digest)
            case TaskFinished() | TaskFailed() | TaskWithdrawn():
                del self._tasks[task.key]
                self._losses.progress()

    def _instructions(self, rank: int) -> Instructions:
        on_trial = self._next_suspect()
        new = [
            task
            for task in self._tasks.values()
            if task.is_on(rank) and rank not in task.ranks
            if not task.is_suspect or task.ranks or task is on_trial
        ]
        for task in new:
            task.ranks.add(rank)
        return Instructions(
            admits=tuple(task.order for task in new),
            withdrawals=tuple(self._withdrawals.pop(rank, ())),
            save=self._save,
            is_stopping=self._is_stopping,
        )

    def _next_suspect(self) -> HeldTask | None:
        """Who is to be tried now: suspects wait until all others that were lost have made a step
        and are saved, and go one by one, first who was lost least often."""
        tasks = self._tasks.values()
        waiting = [task for task in tasks if task.is_suspect and not task.ranks]
        if not waiting or any(task.is_in_doubt for task in tasks):
            return None
        is_safe = self._members.all_saved(self._save)
        return min(waiting, key=lambda task: task.num_losses) if is_safe else None

    def _place(self, tasks: Sequence[HeldTask]) -> None:
        """Give each of these a rank, if there is any: one that was heard of lately."""
        loads = dict.fromkeys(self._members.lively, 0.0)
        if not loads:
            return
        placed = {id(task) for task in tasks}
        for task in self._tasks.values():
            if task.rank in loads and id(task) not in placed:
                loads[task.rank] += task.work_left
        ranks = place([task.order for task in tasks], loads)
        for task in tasks:
            if task.key in self._tasks:
                task.rank = ranks[task.order.job_id]

    def _place_anew_what_waits_for_the_silent(self) -> None:
        lively = {*self._members.lively, EVERY_RANK}
        waiting = [t for t in self._tasks.values() if not t.ranks and t.rank not in lively]
        if waiting:
            self._place(waiting)

    def _withdraw_waiting(self) -> None:
        for task in list(self._tasks.values()):
            if not task.ranks:
                self._drop(task)

    def _drop(self, task: HeldTask) -> None:
        del self._tasks[task.key]
        self._events.add(TaskWithdrawn(*task.key, task.step))

    def _fail(self, task: HeldTask, reason: str) -> None:
        del self._tasks[task.key]
        job_id, epoch = task.key
        self._events.add(TaskFailed(job_id, reason, epoch, Fault.MACHINE))

    def _charge(self, task: HeldTask) -> None:
        task.lose()
        if task.num_losses >= MAX_LOSSES:
            self._losses.progress()  # the next group is without it
            self._fail(
                task,
                f"its worker died {task.num_losses} times while it trained there, and it came no "
                f"further than step {task.step}; the last time: {self._losses.reason}",
            )

    def _end_if_abandoned(self) -> None:
        if self._now() > self._taken + self._members.silence_s and not self._is_stopping:
            silent = f"its controller was not heard of for {self._members.silence_s:g} s"
            self._error = self._error or silent
            self.stop()

    def _restart_note(self) -> str:
        why = f" ({self._losses.reason})" if self._losses.reason else ": their number changes"
        return f"the gang's workers start again{why}"
