"""The Python API: one class, the same verbs as the command line.

with Tutti() as tutti:
    tutti.add_base("smollm2-135m", Path("..."))
    tutti.train([Path("examples/tasks/country-continent.yaml")])
    print(tutti.prompt("country-continent@production").metrics)
"""

import os
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from encoders.files.durable_file import make_folder
from orchestrator.bootstrap import Parts, gang_log
from orchestrator.domain.base_model import BaseModelRecord
from orchestrator.domain.errors import InvalidInput, UnknownName
from orchestrator.domain.gate import Gate
from orchestrator.domain.job import Job, JobState
from orchestrator.domain.prompt_version import Promotion, PromptRef, PromptVersion
from orchestrator.settings import Settings, read_settings

if TYPE_CHECKING:
    from orchestrator.inference.batch_run import BatchResult
    from orchestrator.scheduling.controller import Controller, Watch
    from orchestrator.submission import CheckedTask
    from orchestrator.tracking.mlflow_mirror import Delivery

POLL_S = 0.2
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

    def submit(self, specs: Sequence[Path], force: bool = False) -> list[Submitted]:
        """Check every spec and its data, then queue a job each. Raises InvalidInput, with every
        fault found, before anything is written. `force` makes new jobs of unchanged specs."""
        from orchestrator.submission import check_task, raise_all, store_task

        checked: list[CheckedTask] = []
        faults: list[InvalidInput] = []
        for path in specs:
            try:
                checked.append(check_task(path, self.parts))
            except InvalidInput as error:
                faults.append(error)
        raise_all(faults)
        nonce = uuid.uuid4().hex if force else ""
        submissions = [store_task(task, self.parts, nonce) for task in checked]
        return [
            Submitted(*self.parts.jobs.submit(submission, self.parts.actor), task.warnings)
            for submission, task in zip(submissions, checked, strict=True)
        ]

    def train(
        self,
        specs: Sequence[Path],
        force: bool = False,
        on_change: "Callable[[Jobs, Watch], None] | None" = None,
        on_submitted: Callable[[list[Submitted]], None] | None = None,
    ) -> Jobs:
        """Submit, and run a controller here until these jobs (without specs: all queued ones) are
        done. Returns the jobs as they ended; their prompts are promoted by their gates."""
        submitted = self.submit(specs, force)
        if on_submitted:
            on_submitted(submitted)
        wanted = [each.job.id for each in submitted] or [job.id for job in self.parts.jobs.queued()]
        if any(not job.state.is_terminal for job in self._jobs(wanted)):
            with self.parts.cluster(gang_log(self.settings, "train")):
                self._run_controller(self.parts.controller(), wanted, on_change)
        return self._jobs(wanted)

    def _run_controller(
        self,
        controller: "Controller",
        wanted: Sequence[str],
        on_change: "Callable[[Jobs, Watch], None] | None",
    ) -> None:
        try:
            is_done = False
            while not (is_done and controller.is_idle):
                controller.step(admits=not is_done)
                jobs = self._jobs(wanted)
                is_done = all(job.state.is_terminal for job in jobs)
                if on_change:
                    on_change(jobs, controller.watch)
                time.sleep(POLL_S)
        finally:
            controller.stop()

    def _jobs(self, ids: Sequence[str]) -> Jobs:
        return [self.parts.jobs.get(job_id) for job_id in ids]

    def jobs(
        self, states: Sequence[JobState] | None = None, task: str | None = None, limit: int = 100
    ) -> Jobs:
        return list(self.parts.jobs.list(states, task, limit))

    def job(self, job_id: str) -> Job:
        return self.parts.jobs.get(job_id)

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
        from orchestrator.inference.batch_run import resolve_references, run_batch
        from orchestrator.inference.chunk import scan
        from orchestrator.inference.chunk_worker import BatchPlan, ServedBase

        source = scan(input_path)
        _check_output(output_path, input_path)
        versions, unresolved = resolve_references(source, alias, self.parts.prompts.resolve)
        fingerprints = {version.lineage.base_fingerprint for version in versions.values()}
        bases = {fingerprint: self._served_base(fingerprint) for fingerprint in fingerprints}
        plan = BatchPlan(
            input=source.path,
            artifact_url=self.parts.artifacts.url,
            default_alias=alias,
            versions=versions,
            unresolved=unresolved,
            bases={key: ServedBase(*base) for key, base in bases.items()},
            num_threads=self.parts.threads_per_worker,
        )
        workers = self.settings.num_workers
        with self.parts.cluster(gang_log(self.settings, "batch")):
            return run_batch(plan, source, output_path, workers, on_progress or (lambda *_: None))

    def _served_base(self, fingerprint: str) -> tuple[Path, int]:
        """A base's folder and longest row, once its files are seen to be what they were."""
        self.parts.base_store.verify(fingerprint)
        record = self.parts.bases.get_by_fingerprint(fingerprint)
        return self.parts.base_store.path(fingerprint), record.max_length


def _check_output(path: Path, source: Path) -> None:
    """Raise InvalidInput unless `path` can become a file, before a run is paid for."""
    remedy = "Give --output a new file in a folder that can be written, for example a.jsonl."
    is_special = path.exists() and not path.is_file()  # a folder, or a device like /dev/null
    if is_special or path.resolve() == source.resolve():
        raise InvalidInput(f"{path}: cannot be the output", remedy)
    try:
        make_folder(path.parent)
    except OSError as error:
        raise InvalidInput(f"{path}: cannot be the output: {error.strerror}", remedy) from error
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise InvalidInput(f"{path}: cannot be the output: its folder is read-only", remedy)
