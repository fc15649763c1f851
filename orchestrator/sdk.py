"""The Python API: one class, the same verbs as the command line.

with Tutti() as tutti:
    tutti.add_base("smollm2-135m", Path("..."))
    tutti.train([Path("examples/tasks/country-continent.yaml")])
    print(tutti.prompt("country-continent@production").metrics)
"""

import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from orchestrator.bootstrap import Parts
from orchestrator.controller_run import UNDONE, serve, train_until_over
from orchestrator.domain.access import ALL_TASKS, Access, Role
from orchestrator.domain.base_model import BaseModelRecord
from orchestrator.domain.digest import short
from orchestrator.domain.errors import InvalidInput, UnknownName
from orchestrator.domain.gang_record import GangRecord
from orchestrator.domain.gate import Gate
from orchestrator.domain.job import Attempt, Job, JobOptions, JobState, LogLine, Quota, Submission
from orchestrator.domain.prompt_version import (
    Approval,
    DescriptionChange,
    Promotion,
    PromptRef,
    PromptVersion,
)
from orchestrator.domain.version_filter import parse_filter
from orchestrator.job_watch import JobWatch, Sight
from orchestrator.log_archive import read_log
from orchestrator.settings import Settings, read_settings

if TYPE_CHECKING:
    from orchestrator.inference.batch_run import BatchResult
    from orchestrator.inference.loaded_prompt import LoadedPrompt
    from orchestrator.prompt_loading import PromptLoader
    from orchestrator.questions.prompt_compare import Comparison
    from orchestrator.questions.prompt_diff import PromptDiff
    from orchestrator.questions.prompt_lineage import PromptLineage
    from orchestrator.questions.stale_prompts import StalePrompt
    from orchestrator.registry.access_book import Standing
    from orchestrator.submission import CheckedTask
    from orchestrator.telemetry.metrics import Metrics
    from orchestrator.tracking.mlflow_mirror import Delivery
    from orchestrator.tracking.reconcile import Policy, SyncReport
    from orchestrator.upkeep.backup import Saved
    from orchestrator.upkeep.fsck import Report
    from orchestrator.upkeep.gc import Collected

WAIT_S = 0.1
MAX_JOBS = 100_000
PRODUCTION = "production"
GRACE_S = 7 * 86_400.0
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

    def __init__(
        self, settings: Settings | None = None, *, cache_ttl_s: float | None = None
    ) -> None:
        """Nothing is opened before it is needed. `cache_ttl_s`, in place of the setting: seconds
        that `load` goes by its own copy."""
        self.settings = settings or read_settings()
        self.parts = Parts(self.settings)
        self._cache_ttl_s = self.settings.cache_ttl_s if cache_ttl_s is None else cache_ttl_s

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
    ) -> Jobs:
        """Submit, and train here until these jobs (without specs: all that wait or run) have ended.
        Returns the jobs as they ended; their prompts are promoted by their gates."""
        submitted = self.submit(specs, force, options, as_arrays)
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
        array: str | None = None,
    ) -> Jobs:
        """Jobs, the newest first."""
        return list(self.parts.jobs.list(states, task, owner, limit, array))

    def array(self, name: str) -> Jobs:
        """The jobs of an array, by trial. Raises UnknownName."""
        jobs = self.jobs(limit=MAX_JOBS, array=name)
        if not jobs:
            raise UnknownName(f"there is no array {name}", "`tutti jobs list` names arrays.")
        return sorted(
            jobs, key=lambda job: job.submission.place.index if job.submission.place else 0
        )

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
        self,
        task: str | None = None,
        alias: str | None = None,
        limit: int = 100,
        where: str | None = None,
        before: str | None = None,
    ) -> Versions:
        """Versions, the newest first: `where` is a filter ("metrics.accuracy > 0.8 and base = x"),
        `before` the last version of the page before. Raises InvalidInput."""
        tree = parse_filter(where) if where else None
        start = PromptRef.parse(before) if before else None
        return list(self.parts.prompts.list(task, alias, limit, tree, start))

    def prompt(self, ref: str) -> PromptVersion:
        """The version of `TASK`, `TASK@7` or `TASK@production`. Raises UnknownName."""
        return self.parts.prompts.resolve(PromptRef.parse(ref))

    def diff(self, a: str, b: str) -> "PromptDiff":
        """How two versions differ: config, metrics, lineage, and the virtual tokens."""
        from orchestrator.questions.prompt_diff import diff_prompts

        return diff_prompts(self.parts, self.prompt(a), self.prompt(b))

    def compare(self, a: str, b: str, data: Path) -> "Comparison":
        """Answer each row of a JSONL file with two versions, here, and say which is better. Raises
        InvalidInput where no row can tell them apart."""
        from orchestrator.questions.prompt_compare import compare_prompts

        return compare_prompts(self.parts, self.prompt(a), self.prompt(b), data)

    def lineage(self, ref: str) -> "PromptLineage":
        """All there is to know of how a version was made and where it was promoted."""
        from orchestrator.questions.prompt_lineage import trace_lineage

        return trace_lineage(self.parts, PromptRef.parse(ref))

    def stale(self, limit: int = 100) -> "list[StalePrompt]":
        """Tasks' newest versions whose base's name means another base now, newest first."""
        from orchestrator.questions.stale_prompts import find_stale

        return find_stale(self.parts, limit)

    def write_retraining(self, stale: "Sequence[StalePrompt]", folder: Path) -> list[Path]:
        """Write the specs, and their data, that train stale prompts again; `submit` takes the paths
        that this returns. Never overwrites: raises InvalidInput."""
        from orchestrator.questions.stale_prompts import write_retraining

        return write_retraining(self.parts, stale, folder)

    def load(self, ref: str) -> "LoadedPrompt":
        """The prompt of `TASK`, `TASK@7` or `TASK@production`, verified, ready for a model.

        Answers are kept in TUTTI_HOME for `cache_ttl_s` seconds; while registry or store are away,
        an older one is given, with a warning (logger `tutti.cache`). From a coroutine:
        `await asyncio.to_thread(tutti.load, ref)`. Raises UnknownName, IntegrityError and, without
        a copy, DatabaseUnavailable or StoreUnavailable.
        """
        return self._loader.load(ref)

    @cached_property
    def _loader(self) -> "PromptLoader":
        from orchestrator.prompt_loading import PromptLoader

        return PromptLoader(self.parts, self._cache_ttl_s)

    def base_folder(self, fingerprint: str) -> Path:
        """The transformers folder of a base on this machine (`version.lineage.base_fingerprint`),
        every file verified. Needs no registry. Raises IntegrityError."""
        self.parts.base_store.verify(fingerprint)
        return self.parts.base_store.path(fingerprint)

    def trials(self, version: PromptVersion) -> list[dict[str, Any]]:
        """The trials of the sweep that a version won, each with its values and its end; else []."""
        from orchestrator.tracking.trial_runs import read_sweep

        sweep = read_sweep(version, self.parts.artifacts)
        return sweep["trials"] if sweep else []

    def history(
        self, task: str, alias: str | None = None, limit: int | None = None
    ) -> list[Promotion]:
        """The moves of a task's aliases, newest first."""
        return list(self.parts.prompts.history(task, alias, limit))

    def at(self, moment: datetime, tasks: Sequence[str] = ()) -> list[Promotion]:
        """Where each alias (of these tasks, or of all) pointed at `moment`, an aware time, as the
        move that had brought it there. Raises UnknownName."""
        if moment.tzinfo is None:
            raise InvalidInput(f"{moment} has no time zone", "Give an aware datetime.")
        return list(self.parts.prompts.at(moment, tasks))

    def promote(
        self,
        ref: str,
        alias: str = PRODUCTION,
        when: str | None = None,
        reason: str = "",
        force: bool = False,
        if_current: int | None = None,
    ) -> Promotion:
        """Move `alias` to a version behind a gate: `when`, else the one in the version's spec for
        this alias. Raises GateRefused, with both values; `force` moves it all the same. Raises
        AliasMoved if it is not at the version `if_current` (0: no alias yet). One that points there
        already stays: its last move is returned."""
        version = self.prompt(ref)
        try:
            gate = Gate.parse(when) if when else self._own_gate(version, alias)
        except ValueError as error:
            raise InvalidInput(str(error)) from error
        target = PromptRef(version.task, version.number)
        return self.parts.prompts.promote(
            target, alias, self.parts.actor, reason, gate, force, if_current
        )

    def rollback(
        self,
        task: str,
        alias: str = PRODUCTION,
        reason: str = "",
        if_current: int | None = None,
    ) -> Promotion:
        """Move `alias` back to the version before its last promotion; the next rollback goes one
        further back. Raises InvalidInput if there is nothing to go back to, or AliasMoved."""
        return self.parts.prompts.rollback(task, alias, self.parts.actor, reason, if_current)

    def approve(self, ref: str, note: str = "") -> list[Approval]:
        """Approve a version that somebody else trained; return its approvals."""
        return list(self.parts.prompts.approve(PromptRef.parse(ref), self.parts.actor, note))

    def withdraw_approval(self, ref: str, note: str = "") -> list[Approval]:
        return list(self.parts.prompts.withdraw(PromptRef.parse(ref), self.parts.actor, note))

    def approvals(self, ref: str) -> list[Approval]:
        """The approvals of a version in force, oldest first."""
        return list(self.parts.prompts.approvals(PromptRef.parse(ref)))

    def describe(self, ref: str, description: str) -> PromptVersion:
        """Set a version's description ("": none); the old one stays in its changes."""
        return self.parts.prompts.describe(PromptRef.parse(ref), self.parts.actor, description)

    def tag(self, ref: str, tags: Mapping[str, str | None]) -> PromptVersion:
        """Set a version's tags, or (None) remove them; the others stay."""
        return self.parts.prompts.describe(PromptRef.parse(ref), self.parts.actor, tags=tags)

    def description_changes(self, ref: str) -> list[DescriptionChange]:
        """Who changed a version's description and tags, newest first."""
        return list(self.parts.prompts.changes(PromptRef.parse(ref)))

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
        """Tell MLflow what it has not heard yet. Never raises for MLflow being away, nor for one
        who may not tell it: on PostgreSQL that is a controller's."""
        from orchestrator.registry.errors import AccessDenied
        from orchestrator.tracking.mlflow_mirror import Delivery

        try:
            return self.parts.mirror.deliver()
        except AccessDenied as error:
            return Delivery(0, self.parts.outbox.num_pending(), error.message)

    def sync_mlflow(
        self, drift: "Policy | None" = None, task: str | None = None, dry_run: bool = False
    ) -> "SyncReport":
        """Find where MLflow differs and repair it: what it lost is made again; aliases that were
        changed there by hand are reported, adopted (promoted here, behind their gates) or reverted,
        by `drift`, else by the setting. `dry_run` only finds. Raises TuttiError while another
        process tells MLflow."""
        if dry_run:
            return self.parts.reconciler.find(task)
        return self.parts.reconciler.sync(drift or self.settings.mlflow_drift, self._adopt, task)

    def _adopt(self, ref: str, alias: str, if_current: int) -> Promotion:
        """Promote what MLflow's alias points at, unless the alias has moved here since."""
        gate = self._own_gate(self.prompt(ref), alias)
        actor, reason = f"mlflow, adopted by {self.parts.actor}", "changed by hand in MLflow"
        target = PromptRef.parse(ref)
        return self.parts.prompts.promote(target, alias, actor, reason, gate, if_current=if_current)

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

    # Access

    def access(self) -> list[Access]:
        """Who has which role on which tasks."""
        return list(self.parts.access.list())

    def standing(self) -> "Standing":
        """As whom this process acts in the database, and what it may."""
        return self.parts.access.standing()

    def add_access(self, principal: str, role: Role, tasks: str = ALL_TASKS) -> str | None:
        """Give a role on the tasks that match; the URL of a new login, with its token, or None.
        PostgreSQL only. Raises InvalidInput or AccessDenied, as the next two."""
        return self.parts.access.add(Access(principal, role, tasks))

    def rotate_access(self, principal: str) -> str:
        """Give a principal a new token in place of the old one: its URL."""
        return self.parts.access.rotate(principal)

    def remove_access(self, principal: str, tasks: str | None = None) -> None:
        """Take a principal's roles (on one pattern of tasks); with the last one, its login."""
        self.parts.access.remove(principal, tasks)

    # Upkeep

    def fsck(
        self, repair: bool = False, quick: bool = False, copies: str | None = None
    ) -> "Report":
        """Check the registry against its artifacts, its bases, itself and MLflow. `copies`: where a
        repair finds lost artifacts, a folder or URL that holds a copy of the store."""
        from orchestrator.upkeep_run import check_registry

        return check_registry(self.parts, repair, quick, copies)

    def gc(self, delete: bool = False, grace_s: float = GRACE_S) -> "Collected":
        """Mark artifacts that nothing names; with `delete`, remove those marked for the grace."""
        from orchestrator.upkeep_run import collect_garbage

        return collect_garbage(self.parts, grace_s, delete)

    def export_prompts(self, refs: Sequence[str], path: Path) -> Versions:
        """Write versions as one archive file, with all they need but their base and data."""
        from orchestrator.upkeep_run import export_prompts

        return export_prompts(self.parts, [PromptRef.parse(ref) for ref in refs], path)

    def import_prompts(self, path: Path) -> list[tuple[PromptVersion, bool]]:
        """Register the versions of an archive, all or none; with False, those whose content was
        there already. Raises InvalidInput or IntegrityError before anything is stored."""
        from orchestrator.upkeep_run import import_prompts

        return import_prompts(self.parts, path)

    def backup(self, folder: Path, with_artifacts: bool = False) -> "Saved":
        """Save the database of this moment, and the artifacts it names if asked to, in a folder."""
        from orchestrator.upkeep_run import save_registry

        return save_registry(self.parts, folder, with_artifacts)

    def restore(self, folder: Path) -> "Saved":
        """Bring a saved registry back into this one, which must be empty."""
        from orchestrator.upkeep_run import restore_registry

        return restore_registry(self.parts, folder)
