"""Submitting and training."""

import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.controller_run import UNDONE, serve, train_until_over
from orchestrator.domain.digest import short
from orchestrator.domain.errors import InvalidInput
from orchestrator.domain.job import Job, JobOptions, JobState, Submission
from orchestrator.job_watch import JobWatch, Sight
from orchestrator.sdk.verbs import Verbs

if TYPE_CHECKING:
    from orchestrator.submission import CheckedTask
    from orchestrator.telemetry.metrics import Metrics

WAIT_S = 0.1
MAX_JOBS = 100_000


@dataclass(frozen=True)
class Submitted:
    """A submitted job; `is_new` is False when the same submission was there already."""

    job: Job
    is_new: bool
    warnings: tuple[str, ...] = ()


class TrainVerbs(Verbs):
    """Jobs made, waited for and trained."""

    def submit(
        self,
        specs: Sequence[Path],
        force: bool = False,
        options: JobOptions | None = None,
        as_arrays: bool = False,
    ) -> list[Submitted]:
        """Check every spec and its data, then queue a job each, in one transaction; `as_arrays`, a
        job for each trial of their sweeps. Raises InvalidInput, with every fault found, before
        anything is written. `force` makes new jobs of unchanged specs. `options.after` may hold
        starts of ids."""
        from orchestrator.domain.job_array import check_array, expand
        from orchestrator.submission import check_task, raise_all, store_task

        options = self._checked(options or JobOptions(), len(specs), as_arrays)
        checked: list[CheckedTask] = []
        faults: list[InvalidInput] = []
        for path in specs:
            try:
                task = check_task(path, self.parts)
                if as_arrays:
                    check_array(task.spec)
                checked.append(task)
            except InvalidInput as error:
                faults.append(error)
        raise_all(faults)
        nonce = uuid.uuid4().hex if force else ""
        submissions: list[Submission] = []
        warnings: list[tuple[str, ...]] = []
        for task in checked:
            whole = store_task(task, self.parts, nonce)
            own = expand(whole, task.work) if as_arrays else [whole]
            submissions += own
            warnings += [task.warnings, *[()] * (len(own) - 1)]
        if not submissions:
            return []
        queued = self.parts.jobs.submit_all([(s, options) for s in submissions], self.parts.actor)
        return [
            Submitted(job, is_new, told)
            for (job, is_new), told in zip(queued, warnings, strict=True)
        ]

    def _checked(self, options: JobOptions, num_specs: int, as_arrays: bool) -> JobOptions:
        if options.key is not None and (num_specs > 1 or as_arrays):
            what = "an array" if as_arrays else f"{num_specs} specs"
            raise InvalidInput(
                f"the key {options.key!r} would make one job of {what}",
                "Give a key with one spec at a time.",
            )
        first = [self.parts.jobs.get(job_id) for job_id in options.after]
        for job in first:
            if job.state in (JobState.FAILED, JobState.CANCELLED):
                raise InvalidInput(
                    f"job {short(job.id)} ({job.task}) is {job.state}: what waits for it would "
                    "never run",
                    f"Try it again first: `tutti jobs retry {short(job.id)}`.",
                )
        return replace(options, after=tuple(job.id for job in first))

    def train(
        self,
        specs: Sequence[Path],
        force: bool = False,
        options: JobOptions | None = None,
        on_change: Callable[[Sight], None] | None = None,
        as_arrays: bool = False,
    ) -> list[Job]:
        """Submit, and train here until these jobs (without specs: all that wait or run) have ended.
        Returns the jobs as they ended; their prompts are promoted by their gates."""
        submitted = self.submit(specs, force, options, as_arrays)
        ids = [each.job.id for each in submitted] if specs else self.undone()
        return self.train_jobs(ids, on_change)

    def train_jobs(
        self, ids: Sequence[str], on_change: Callable[[Sight], None] | None = None
    ) -> list[Job]:
        """Run a controller here until these jobs have ended; where another one leads, that one
        trains them. What `on_change` raises ends it: unfinished jobs go back to the queue."""
        watch = JobWatch(self.parts, ids)
        if not watch.is_over:
            train_until_over(self.parts, watch, on_change or (lambda _: None))
        return watch.jobs

    def undone(self) -> list[str]:
        """The ids of all jobs that wait or run, the oldest first."""
        return [job.id for job in self.parts.jobs.list(UNDONE, limit=MAX_JOBS)][::-1]

    def wait(
        self, ids: Sequence[str], on_change: Callable[[Sight], None] | None = None
    ) -> list[Job]:
        """Wait until these jobs have ended, whoever trains them; return them as they ended."""
        watch = JobWatch(self.parts, ids)
        while True:
            sight = watch.look()
            if sight is not None and on_change:
                on_change(sight)
            if watch.is_over:
                return watch.jobs
            time.sleep(WAIT_S)

    def serve(
        self, stop: threading.Event, once_idle: bool = False, metrics: "Metrics | None" = None
    ) -> None:
        """Run a controller here until `stop` is set or, if `once_idle`, nothing is left to do."""
        serve(self.parts, stop, once_idle, metrics)
