"""Starts batch runs and goes on with them: what is asked for is checked before Ray is started, and
a run is in the ledger before its first row is answered."""

import uuid
from contextlib import ExitStack
from dataclasses import dataclass, replace

from orchestrator.batch.base_sharding import plan_bases
from orchestrator.batch.ray_pool import RayPool
from orchestrator.batch.request import BatchRequest, check_request
from orchestrator.batch.resume import prepare_resumption, target_of
from orchestrator.batch.run import Left, Pool, Watch, Work, left_error
from orchestrator.batch.whole_output import part_of, pinned_versions
from orchestrator.batch_data.join_parts import remove_parts
from orchestrator.batch_data.output_target import OutputTarget, open_target
from orchestrator.bootstrap import Parts
from orchestrator.domain.batch_run import BatchRun, BatchState, RunPlan, TaskCount, sum_counts
from orchestrator.domain.prompt_version import PromptVersion
from orchestrator.holder import is_dead, this_holder


@dataclass(frozen=True)
class BatchResult:
    """A run that has succeeded. `output` is the file or folder, as a path or URL."""

    run: BatchRun
    output: str
    manifest: str
    versions: tuple[PromptVersion, ...]
    counts: dict[str, TaskCount]

    @property
    def id(self) -> str:
        return self.run.id

    @property
    def num_rows(self) -> int:
        return self.run.num_rows

    @property
    def num_errors(self) -> int:
        return self.run.num_errors

    @property
    def seconds(self) -> float:
        return self.run.seconds


def run_batch(
    parts: Parts, request: BatchRequest, watch: Watch | None = None, pool: Pool | None = None
) -> BatchResult:
    """Answer an input; raises InvalidInput before anything is written, and see Work.run."""
    watch = watch or Watch()
    pool = pool or RayPool(parts, watch.note)
    checked = check_request(parts, request)
    settings, run_id = parts.settings, uuid.uuid4().hex
    with ExitStack() as up:
        up.enter_context(pool.up())
        sharding = plan_bases(parts, checked.plan.bases)
        plan = replace(checked.plan, zero_stage=sharding.zero_stage)
        lease = parts.batches.create(
            run_id,
            plan,
            str(request.source),
            parts.actor,
            this_holder(),
            settings.lease_s,
        )
        work = Work(
            parts,
            lease,
            plan,
            checked.target,
            pool.answer,
            up.pop_all,
            watch,
            sharding,
        )
        try:
            run = work.run(lambda _: _open(checked.target, run_id))
        except Left:
            raise left_error(parts.batches.get(run_id)) from None
    return result_of(parts, run, plan)


def resume_batch(
    parts: Parts, run_id: str, watch: Watch | None = None, pool: Pool | None = None
) -> BatchResult:
    """Go on with a run that has not ended, by id or prefix. One that has succeeded gives its result
    again. Raises InvalidInput where another process works on it or its input has changed, and see
    Work.run."""
    watch = watch or Watch()
    pool = pool or RayPool(parts, watch.note)
    book = parts.batches
    run = book.get(run_id)
    plan = book.plan(run.id)
    target = target_of(plan)
    if run.state == BatchState.SUCCEEDED:
        _sweep(parts, run, target)
        return result_of(parts, run, plan)
    lease = book.lead(run.id, this_holder(), parts.settings.lease_s, is_dead)
    work = Work(parts, lease, plan, target, pool.answer, pool.up, watch)
    try:
        run = work.run(lambda _: prepare_resumption(parts, lease, plan, target, watch))
    except Left:
        raise left_error(book.get(run.id)) from None
    return result_of(parts, run, plan)


def result_of(parts: Parts, run: BatchRun, plan: RunPlan) -> BatchResult:
    """What a run that has succeeded gave."""
    target = target_of(plan)
    return BatchResult(
        run,
        target.url,
        target.manifest,
        tuple(pinned_versions(parts, plan)),
        sum_counts(parts.batches.shards(run.id)),
    )


def _open(target: OutputTarget, run_id: str) -> None:
    open_target(target, run_id)


def _sweep(parts: Parts, run: BatchRun, target: OutputTarget) -> None:
    """Remove the parts of a joined run whose process was killed just after its end."""
    files = [part_of(shard) for shard in parts.batches.shards(run.id)]
    remove_parts(target.parts_folder(run.id), files, target)
