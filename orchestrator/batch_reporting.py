"""A batch run's report from the ledger and the run's own output: where the two lie, and that the
output is the one the ledger means."""

import json
from collections.abc import Sequence

from orchestrator.batch_data.output_file import read_output
from orchestrator.batch_data.output_target import OutputTarget
from orchestrator.batch_report.batch_report import BatchReport, count_rows
from orchestrator.batch_report.part_reader import OutputFile, read_rows
from orchestrator.batch_report.run_facts import PinnedVersion, RunFacts, ShardFacts
from orchestrator.domain.batch_run import BatchRun, BatchState, RunPlan, ShardRecord, ShardState
from orchestrator.domain.digest import short
from orchestrator.domain.errors import IntegrityError
from orchestrator.registry.batch_book import BatchBook


def report_run(book: BatchBook, run_id: str) -> BatchReport:
    """Count a run's rows, by its id or the start of it; of one that has not ended, those of its
    finished shards. Raises UnknownName; IntegrityError for output that is lost or altered."""
    run = book.get(run_id)
    shards = book.shards(run.id)
    return count_rows(_facts(run, book.plan(run.id), shards), read_rows(output_files(run, shards)))


def output_files(run: BatchRun, shards: Sequence[ShardRecord]) -> tuple[OutputFile, ...]:
    """Where the rows of finished shards lie now, in order, with their digests."""
    target = OutputTarget.parse(run.output, run.format)
    if target.is_file and run.state is BatchState.SUCCEEDED:
        return (OutputFile(target.url, _joined_digest(target, run)),)
    folder = target.parts_folder(run.id)
    return tuple(
        OutputFile(f"{folder}/{shard.file}", shard.sha256)
        for shard in shards
        if shard.state is ShardState.DONE
    )


def _joined_digest(target: OutputTarget, run: BatchRun) -> str:
    """The digest of the one file, from the manifest beside it, if it is of this run."""
    try:
        manifest = json.loads(b"".join(read_output(target.manifest)))
        owner, digest = str(manifest["run"]), str(manifest["output"]["files"][0]["sha256"])
    except FileNotFoundError as error:
        raise IntegrityError(
            f"{target.manifest}: no such file", "The output was moved away or removed."
        ) from error
    except (ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
        raise IntegrityError(f"{target.manifest}: not a batch run's manifest: {error}") from error
    if owner != run.id:
        raise IntegrityError(
            f"{target.url}: it is the output of batch run {short(owner)} now, which replaced that "
            f"of {short(run.id)}",
            f"See `tutti batch report {short(owner)}`.",
        )
    return digest


def _facts(run: BatchRun, plan: RunPlan, shards: Sequence[ShardRecord]) -> RunFacts:
    pins = {pin.ref: pin for pin in plan.pins.values() if pin.ref is not None}
    return RunFacts(
        id=run.id,
        state=str(run.state),
        created_at=run.created_at.isoformat(timespec="seconds"),
        seconds=run.seconds or None,
        output=run.output,
        num_rows=run.num_rows,
        num_shards=run.num_shards,
        settings={
            **plan.settings,
            "format": str(plan.format),
            "shard_rows": plan.shard_rows,
            "threads of a worker": plan.num_threads,
            "code version": plan.code_version,
            "owner": run.owner,
        },
        inputs={str(file["url"]): str(file["sha256"]) for file in plan.input["files"]},
        versions=tuple(
            PinnedVersion(ref, pin.digest or "", pin.base_fingerprint or "")
            for ref, pin in sorted(pins.items())
        ),
        shards=tuple(
            ShardFacts(shard.number, shard.num_rows, shard.seconds or 0.0, shard.counts)
            for shard in shards
            if shard.state is ShardState.DONE
        ),
    )
