"""Before a run goes on: what it read, used and wrote must be what it was. A part that is lost is
answered again; an input that has changed ends the matter."""

import hashlib

from orchestrator.batch.run import Watch
from orchestrator.batch.whole_output import part_of
from orchestrator.batch_data.batch_input import Input
from orchestrator.batch_data.location import read_chunks
from orchestrator.batch_data.output_target import OutputTarget, open_target
from orchestrator.batch_data.part_file import OutputFormat, discard_part, has_part, part_name
from orchestrator.bootstrap import Parts
from orchestrator.code_version import code_version
from orchestrator.domain.batch_run import RunLease, RunPlan, ShardState
from orchestrator.domain.errors import InvalidData


def target_of(plan: RunPlan) -> OutputTarget:
    """Where a run's output goes."""
    return OutputTarget.parse(plan.output, plan.format)


def prepare_resumption(
    parts: Parts, lease: RunLease, plan: RunPlan, target: OutputTarget, watch: Watch
) -> None:
    """Check the input and the bases, and each part that counts; what does not hold is to be
    answered again. Raises InvalidData or IntegrityError where the run cannot go on."""
    if plan.code_version != code_version():
        watch.note(
            f"this program is {code_version()}, the run was started with {plan.code_version}: "
            "its later rows may differ in their last digits from what that one gives"
        )
    check_input(Input.from_json(plan.input))
    for fingerprint in plan.bases:
        parts.base_store.verify(fingerprint)
    folder = open_target(target, lease.run_id)
    lost = check_parts(parts, lease, folder, target.format)
    if lost:
        names = ", ".join(part_name(number, target.format) for number in lost[:5])
        more = f" and {len(lost) - 5} more" if len(lost) > 5 else ""
        watch.note(f"{names}{more}: missing or altered, to be answered again")


def check_input(source: Input) -> None:
    """Raise InvalidData for the first file that is not what it was."""
    for file in source.files:
        digest = hashlib.sha256()
        for chunk in read_chunks(file.url):
            digest.update(chunk)
        if digest.hexdigest() != file.sha256:
            raise InvalidData(
                f"{file.url}: has changed since the run started",
                "Put the old file back to resume, or start a new run.",
            )


def check_parts(
    parts: Parts, lease: RunLease, folder: str, output_format: OutputFormat
) -> list[int]:
    """Remove each part that does not count, written by who was killed before its commit or altered
    since; shards that lost theirs are opened again: their numbers."""
    lost: list[int] = []
    for shard in parts.batches.shards(lease.run_id):
        is_done = shard.state == ShardState.DONE
        if is_done and has_part(folder, part_of(shard)):
            continue
        discard_part(folder, part_name(shard.number, output_format))
        if is_done:
            lost.append(shard.number)
    if lost:
        parts.batches.reopen(lease, lost)
    return lost
