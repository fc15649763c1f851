"""Batch runs."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.domain.batch import BatchMode, BatchSettings, Decoding
from orchestrator.domain.batch_run import BatchRun, BatchState, RunPlan, ShardRecord
from orchestrator.domain.errors import UnknownName
from orchestrator.domain.prompt_version import PromptRef
from orchestrator.sdk.verbs import PRODUCTION, Verbs

if TYPE_CHECKING:
    import threading

    from orchestrator.batch.progress import Progress
    from orchestrator.batch.run import Watch
    from orchestrator.batch.start import BatchResult

Say = Callable[[str], None]
OnProgress = Callable[["Progress"], None]
Shards = list[ShardRecord]


class BatchVerbs(Verbs):
    """Files of rows answered by many prompts; runs seen and steered."""

    def batch(
        self,
        input_path: str | Path,
        output_path: str | Path,
        alias: str = PRODUCTION,
        on_progress: OnProgress | None = None,
        *,
        prompt: str | None = None,
        columns: Mapping[str, str] | None = None,
        mode: BatchMode | str = BatchMode.AUTO,
        calibrate: bool = False,
        decoding: Decoding | None = None,
        answers: str | None = None,
        format: str | None = None,
        shard_rows: int = 1024,
        on_note: Say | None = None,
        stop: "threading.Event | None" = None,
    ) -> "BatchResult":
        """Answer a file, folder or glob of rows; one output row for each input row, in order.

        `prompt` (`TASK@ALIAS`) answers all rows, else each names its task; `columns` says in which
        column a field stands; `answers` names the field with the answers that mode `score` scores.
        `stop`, once it is set, leaves the run to `resume_batch`. Raises InvalidInput before
        anything is written, TuttiError where the run fails; a failed one may be resumed.
        """
        from orchestrator.batch.request import BatchRequest
        from orchestrator.batch.start import run_batch

        settings = BatchSettings(
            mode=BatchMode(mode),
            alias=alias,
            prompt=None if prompt is None else PromptRef.parse(prompt),
            columns=dict(columns or {}),
            calibrate=calibrate,
            decoding=decoding or Decoding(),
            answers_field=answers,
        )
        request = BatchRequest(input_path, output_path, settings, format, shard_rows)
        return run_batch(self.parts, request, _watch(on_progress, on_note, stop))

    def batches(
        self,
        states: Sequence[BatchState] | None = None,
        owner: str | None = None,
        limit: int = 100,
    ) -> list[BatchRun]:
        """Batch runs, the newest first."""
        return list(self.parts.batches.list(states, owner, limit))

    def batch_run(self, run_id: str | None = None) -> BatchRun:
        """By its id or the start of it, or the newest. Raises UnknownName."""
        if run_id is not None:
            return self.parts.batches.get(run_id)
        for newest in self.batches(limit=1):
            return newest
        raise UnknownName("there is no batch run yet", "Start one with `tutti batch run`.")

    def batch_plan(self, run_id: str) -> RunPlan:
        """What a run was started with: input, settings, pinned versions."""
        return self.parts.batches.plan(self.batch_run(run_id).id)

    def batch_shards(self, run_id: str) -> Shards:
        """A run's shards, in order, each with its state, epoch, part file and counts."""
        return list(self.parts.batches.shards(self.batch_run(run_id).id))

    def resume_batch(
        self,
        run_id: str,
        on_progress: OnProgress | None = None,
        on_note: Say | None = None,
        stop: "threading.Event | None" = None,
    ) -> "BatchResult":
        """Go on with a run whose process is gone, or that failed; what is done is not done again.
        Raises InvalidInput where another process works on it, or its input has changed."""
        from orchestrator.batch.start import resume_batch

        return resume_batch(self.parts, run_id, _watch(on_progress, on_note, stop))

    def cancel_batch(self, run_id: str) -> BatchRun:
        """End a run for good. Its parts stay where they are."""
        return self.parts.batches.cancel(run_id)

    def batch_predictor(self, refs: Sequence[str], **options: Any) -> dict[str, Any]:
        """Arguments for BatchPredictor in a `ray.data` pipeline of your own, with the references
        resolved now: `map_batches(BatchPredictor, fn_constructor_kwargs=...)`. `options`: its
        `settings`, `num_threads` and `weight_copies_bytes`."""
        from orchestrator.inference.batch_predictor import predictor_arguments

        versions = {ref: self.prompt(ref) for ref in refs}
        bases = {}
        for fingerprint in {v.lineage.base_fingerprint for v in versions.values()}:
            self.parts.base_store.verify(fingerprint)
            record = self.parts.bases.get_by_fingerprint(fingerprint)
            bases[fingerprint] = (self.parts.base_store.path(fingerprint), record.max_length)
        options.setdefault("num_threads", self.parts.threads_per_worker)
        options.setdefault("weight_copies_bytes", self.parts.settings.weight_copies_mb << 20)
        return predictor_arguments(versions, bases, self.parts.artifacts.url, **options)


def _watch(
    on_progress: OnProgress | None, on_note: Say | None, stop: "threading.Event | None"
) -> "Watch":
    from orchestrator.batch.run import Watch

    given: dict[str, Any] = {"progress": on_progress, "note": on_note, "stop": stop}
    return Watch(**{name: value for name, value in given.items() if value is not None})
