"""The Python API: one class, the same verbs as the command line.

with Tutti() as tutti:
    tutti.add_base("smollm2-135m", Path("..."))
    tutti.train([Path("examples/tasks/country-continent.yaml")])
    print(tutti.prompt("country-continent@production").metrics)
"""

import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from orchestrator.bootstrap import Parts
from orchestrator.controller_run import UNDONE, serve, train_until_over
from orchestrator.domain.base_model import BaseModelRecord
from orchestrator.domain.digest import short
from orchestrator.domain.errors import InvalidInput, UnknownName
from orchestrator.domain.gang_record import GangRecord
from orchestrator.domain.gate import Gate
from orchestrator.domain.job import Attempt, Job, JobOptions, JobState, LogLine, Quota
from orchestrator.domain.prompt_version import Promotion, PromptRef, PromptVersion
from orchestrator.job_watch import JobWatch, Sight
from orchestrator.log_archive import read_log
from orchestrator.settings import Settings, read_settings

if TYPE_CHECKING:
    from orchestrator.inference.batch_run import BatchResult
    from orchestrator.submission import CheckedTask
    from orchestrator.telemetry.metrics import Metrics
    from orchestrator.tracking.mlflow_mirror import Delivery

WAIT_S = 0.1
MAX_JOBS = 100_000
PRODUCTION = "production"
Jobs = list[Job]
Versions = list[PromptVersion]


@dataclass(frozen=True)
class Submitted:
    """A submitted job; `is_new` is False when the same submission was there already."""

    job: Job
    is_new: bool
    warnings: tuple[str, ...] = ()


class Tutti:
    """One data directory (or team database) and everything that can be done with it."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or read_settings()
        self.parts = Parts(self.settings)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self.parts.close()

    # Base models

    def add_base(
        self, name: str, path: Path, gguf: str | None = None, replace: bool = False
    ) -> tuple[BaseModelRecord, bool]:
        """Register a transformers folder (or a GGUF file in it) as base `name`.

        Returns the record, and False when it was there already. Raises InvalidModelFolder.
        """
        record = self.parts.base_store.add(name, path, gguf)
        return self.parts.bases.add(record, replace)

    def bases(self) -> list[BaseModelRecord]:
        return list(self.parts.bases.list())

    def base(self, name: str) -> BaseModelRecord:
        return self.parts.bases.get(name)

    # Jobs

    def submit(
        self, specs: Sequence[Path], force: bool = False, options: JobOptions | None = None
    ) -> list[Submitted]:
        """Check every spec and its data, then queue a job each, in one transaction. Raises
        InvalidInput, with every fault found, before anything is written. `force` makes new jobs of
        unchanged specs. `options.after` may hold starts of ids."""
        from orchestrator.submission import check_task, raise_all, store_task

        options = self._checked(options or JobOptions(), len(specs))
        checked: list[CheckedTask] = []
        faults: list[InvalidInput] = []
        for path in specs:
            try:
                checked.append(check_task(path, self.parts))
            except InvalidInput as error:
                faults.append(error)
        raise_all(faults)
        nonce = uuid.uuid4().hex if force else ""
        submissions = [(store_task(task, self.parts, nonce), options) for task in checked]
        if not submissions:
            return []
        queued = self.parts.jobs.submit_all(submissions, self.parts.actor)
        return [
            Submitted(job, is_new, task.warnings)
            for (job, is_new), task in zip(queued, checked, strict=True)
        ]

    def _checked(self, options: JobOptions, num_specs: int) -> JobOptions:
        if options.key is not None and num_specs > 1:
            raise InvalidInput(
                f"the key {options.key!r} would make one job of {num_specs} specs",
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
    ) -> Jobs:
        """Submit, and train here until these jobs (without specs: all that wait or run) have ended.
        Returns the jobs as they ended; their prompts are promoted by their gates."""
        submitted = self.submit(specs, force, options)
        ids = [each.job.id for each in submitted] if specs else self.undone()
        return self.train_jobs(ids, on_change)

    def train_jobs(
        self, ids: Sequence[str], on_change: Callable[[Sight], None] | None = None
    ) -> Jobs:
        """Run a controller here until these jobs have ended; where another one leads, that one
        trains them. What `on_change` raises ends it: unfinished jobs go back to the queue."""
        watch = JobWatch(self.parts, ids)
        if not watch.is_over:
            train_until_over(self.parts, watch, on_change or (lambda _: None))
        return watch.jobs

    def undone(self) -> list[str]:
        """The ids of all jobs that wait or run, the oldest first."""
        return [job.id for job in self.parts.jobs.list(UNDONE, limit=MAX_JOBS)][::-1]

    def wait(self, ids: Sequence[str], on_change: Callable[[Sight], None] | None = None) -> Jobs:
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

    def jobs(
        self,
        states: Sequence[JobState] | None = None,
        task: str | None = None,
        owner: str | None = None,
        limit: int = 100,
    ) -> Jobs:
        """Jobs, the newest first."""
        return list(self.parts.jobs.list(states, task, owner, limit))

    def job(self, job_id: str) -> Job:
        """By its id or the start of it. Raises UnknownName."""
        return self.parts.jobs.get(job_id)

    def attempts(self, job_id: str) -> list[Attempt]:
        """A job's attempts, first to last, each with its cause and whose fault that was."""
        return list(self.parts.jobs.attempts(job_id))

    def logs(self, job_id: str, after: int = 0) -> list[LogLine]:
        """What happened to a job: the lines with numbers above `after`. Needs no cluster."""
        return read_log(self.parts.jobs, self.parts.artifacts, self.job(job_id).id, after)

    def now(self) -> datetime:
        """The time that jobs go by: the database's."""
        return self.parts.jobs.now()

    def cancel(self, job_id: str) -> Job:
        return self.parts.jobs.cancel(job_id, self.parts.actor)

    def pause(self, job_id: str) -> Job:
        """A queued job pauses at once, a running one with a checkpoint at its next step."""
        return self.parts.jobs.pause(job_id, self.parts.actor)

    def resume(self, job_id: str) -> Job:
        return self.parts.jobs.resume(job_id, self.parts.actor)

    def retry(self, job_id: str, time_limit_s: float | None = None) -> Job:
        """Queue a failed or cancelled job again; it goes on from its last checkpoint, under the new
        time limit if one is given: one that its time limit ended needs a higher one."""
        return self.parts.jobs.retry(job_id, self.parts.actor, time_limit_s)

    def set_priority(self, job_id: str, priority: int) -> Job:
        return self.parts.jobs.set_priority(job_id, priority, self.parts.actor)

    def quotas(self) -> list[Quota]:
        return list(self.parts.jobs.quotas())

    def set_quota(self, quota: Quota) -> None:
        self.parts.jobs.set_quota(quota.owner, quota.max_running, quota.share)

    # Gangs

    def gangs(self, include_ended: bool = False, limit: int = 100) -> list[GangRecord]:
        return list(self.parts.gangs.list(include_ended, limit))

    def drain(self, gang: str) -> None:
        """Ask a gang to end; its jobs go back to the queue. Raises UnknownName."""
        self.parts.gangs.ask_drain(gang)

    def leader(self) -> str | None:
        """The holder name of the controller that leads, if one does."""
        leader = self.parts.leadership.leader()
        return leader.holder if leader and not leader.is_expired else None

    # Prompts

    def prompts(
        self, task: str | None = None, alias: str | None = None, limit: int = 1000
    ) -> Versions:
        return list(self.parts.prompts.list(task, alias, limit))

    def prompt(self, ref: str) -> PromptVersion:
        """The version of `TASK`, `TASK@7` or `TASK@production`. Raises UnknownName."""
        return self.parts.prompts.resolve(PromptRef.parse(ref))

    def trials(self, version: PromptVersion) -> list[dict[str, Any]]:
        """The trials of the sweep that a version won, each with its values and its end; else []."""
        from orchestrator.tracking.trial_runs import read_sweep

        sweep = read_sweep(version, self.parts.artifacts)
        return sweep["trials"] if sweep else []

    def history(self, task: str, alias: str | None = None) -> list[Promotion]:
        return list(self.parts.prompts.history(task, alias))

    def promote(
        self,
        ref: str,
        alias: str = PRODUCTION,
        when: str | None = None,
        reason: str = "",
        force: bool = False,
    ) -> Promotion:
        """Move `alias` to a version behind a gate: `when`, else the one in the version's spec for
        this alias. Raises GateRefused, with both numbers; `force` moves it all the same."""
        version = self.prompt(ref)
        try:
            gate = Gate.parse(when) if when else self._own_gate(version, alias)
        except ValueError as error:
            raise InvalidInput(str(error)) from error
        target = PromptRef(version.task, version.number)
        return self.parts.prompts.promote(target, alias, self.parts.actor, reason, gate, force)

    def _own_gate(self, version: PromptVersion, alias: str) -> Gate | None:
        """The gate that the version's own spec sets for `alias`."""
        if version.lineage.job is None:
            return None
        try:
            spec = self.parts.jobs.get(version.lineage.job).submission.spec
        except UnknownName:
            return None
        return spec.gate() if spec.promote and spec.promote.alias == alias else None

    def deliver(self) -> "Delivery":
        """Tell MLflow what it has not heard yet. Never raises for MLflow being away."""
        return self.parts.mirror.deliver()

    # Batch runs

    def batch(
        self,
        input_path: Path,
        output_path: Path,
        alias: str = PRODUCTION,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> "BatchResult":
        """Answer a JSONL file of mixed tasks; one output line for each input line, in order."""
        from orchestrator.batch_request import answer_file

        progress = on_progress or (lambda *_: None)
        return answer_file(self.parts, input_path, output_path, alias, progress)
