"""The output as a whole: the one file, if it is to be one, and the manifest, which comes last."""

from collections.abc import Sequence
from typing import Any

from orchestrator.batch_data.batch_input import Input
from orchestrator.batch_data.join_parts import join_parts
from orchestrator.batch_data.manifest import describe_run, write_manifest
from orchestrator.batch_data.output_target import OutputTarget
from orchestrator.batch_data.part_file import PartFile
from orchestrator.bootstrap import Parts
from orchestrator.domain.batch import BatchSettings
from orchestrator.domain.batch_run import RunPlan, ShardRecord, sum_counts
from orchestrator.domain.prompt_version import PromptRef, PromptVersion


def part_of(shard: ShardRecord) -> PartFile:
    """A done shard's part file."""
    assert shard.file is not None
    assert shard.sha256 is not None
    assert shard.num_bytes is not None
    return PartFile(shard.file, shard.sha256, shard.num_bytes, shard.num_rows, shard.num_errors)


def make_whole(
    parts: Parts,
    run_id: str,
    plan: RunPlan,
    target: OutputTarget,
    shards: Sequence[ShardRecord],
    seconds: float,
) -> list[PartFile]:
    """Write what a run of done shards gives; return its parts, which still lie there."""
    files = [part_of(shard) for shard in shards]
    folder = target.parts_folder(run_id)
    shown = [join_parts(folder, files, target)] if target.is_file else files
    manifest: dict[str, Any] = describe_run(
        run_id,
        Input.from_json(plan.input),
        BatchSettings.from_json(plan.settings),
        pinned_versions(parts, plan),
        {ref: pin.error for ref, pin in plan.pins.items() if pin.error is not None},
        target,
        shown,
        seconds,
    )
    manifest["references"] = {ref: pin.ref for ref, pin in plan.pins.items() if pin.ref}
    manifest["counts"] = {name: vars(count) for name, count in sum_counts(shards).items()}
    manifest["code_version"] = plan.code_version
    write_manifest(target, manifest)
    return files


def pinned_versions(parts: Parts, plan: RunPlan) -> list[PromptVersion]:
    """The versions that a run uses, each once, by task and number."""
    found = {
        pin.ref: parts.prompts.resolve(PromptRef(pin.task, pin.number))
        for pin in plan.pins.values()
        if pin.number is not None
    }
    return sorted(found.values(), key=lambda version: (version.task, version.number))
