"""A batch run from its files: what is asked for is looked up and checked before Ray is started."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from encoders.files.durable_file import make_folder
from orchestrator.bootstrap import Parts, gang_log
from orchestrator.domain.errors import InvalidInput

if TYPE_CHECKING:
    from orchestrator.inference.batch_run import BatchResult


def answer_file(
    parts: Parts,
    input_path: Path,
    output_path: Path,
    alias: str,
    on_progress: Callable[[int, int], None],
) -> "BatchResult":
    """Answer a JSONL file of mixed tasks on the Ray cluster; raises InvalidInput."""
    from orchestrator.inference.batch_run import resolve_references, run_batch
    from orchestrator.inference.chunk import scan
    from orchestrator.inference.chunk_worker import BatchPlan, ServedBase

    source = scan(input_path)
    _check_output(output_path, input_path)
    versions, unresolved = resolve_references(source, alias, parts.prompts.resolve)
    fingerprints = {version.lineage.base_fingerprint for version in versions.values()}
    bases = {fingerprint: _served_base(parts, fingerprint) for fingerprint in fingerprints}
    plan = BatchPlan(
        input=source.path,
        artifact_url=parts.artifacts.url,
        default_alias=alias,
        versions=versions,
        unresolved=unresolved,
        bases={key: ServedBase(*base) for key, base in bases.items()},
        num_threads=parts.threads_per_worker,
    )
    with parts.cluster(gang_log(parts.settings, "batch")):
        return run_batch(plan, source, output_path, parts.settings.num_workers, on_progress)


def _served_base(parts: Parts, fingerprint: str) -> tuple[Path, int]:
    """A base's folder and longest row, once its files are seen to be what they were."""
    parts.base_store.verify(fingerprint)
    record = parts.bases.get_by_fingerprint(fingerprint)
    return parts.base_store.path(fingerprint), record.max_length


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
