"""The manifest, a run's last file: what was read, asked, answered and written, and the time taken.

{"run", "input": {source, rows, files: [{url, format, sha256, bytes, rows}]}, "settings",
"versions": {TASK@NUMBER: {digest, base}}, "unresolved": {reference: why}, "output": {url, format,
files: [{name, sha256, bytes, rows, errors}]}, "rows", "errors", "seconds"}; more keys may follow.
`base` is the base model's fingerprint.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from orchestrator.batch_data.batch_input import Input
from orchestrator.batch_data.output_file import write_over
from orchestrator.batch_data.output_target import OutputTarget
from orchestrator.batch_data.part_file import PartFile
from orchestrator.domain.batch import BatchSettings
from orchestrator.domain.prompt_version import PromptVersion


def describe_run(
    run: str,
    source: Input,
    settings: BatchSettings,
    versions: Iterable[PromptVersion],
    unresolved: Mapping[str, str],
    target: OutputTarget,
    files: Sequence[PartFile],
    seconds: float,
) -> dict[str, Any]:
    """The manifest's JSON. `files`: the parts, or the one file that `join_parts` gave."""
    return {
        "run": run,
        "input": {
            "source": source.source,
            "rows": source.num_rows,
            "shard_rows": source.shard_rows,
            "files": [
                {
                    "url": file.url,
                    "format": str(file.format),
                    "sha256": file.sha256,
                    "bytes": file.num_bytes,
                    "rows": file.num_rows,
                }
                for file in source.files
            ],
        },
        "settings": settings.to_json(),
        "versions": {
            version.ref: {"digest": version.digest, "base": version.lineage.base_fingerprint}
            for version in versions
        },
        "unresolved": dict(unresolved),
        "output": {
            "url": target.url,
            "format": str(target.format),
            "files": [_file(each) for each in files],
        },
        "rows": sum(each.num_rows for each in files),
        "errors": sum(each.num_errors for each in files),
        "seconds": round(seconds, 3),
    }


def write_manifest(target: OutputTarget, manifest: Mapping[str, Any]) -> None:
    """Write it durably at `target.manifest`. It comes last: with it the output is whole."""
    text = json.dumps(manifest, indent=2, ensure_ascii=False)
    write_over(target.manifest, [f"{text}\n".encode()])


def _file(part: PartFile) -> dict[str, Any]:
    return {
        "name": part.name,
        "sha256": part.sha256,
        "bytes": part.num_bytes,
        "rows": part.num_rows,
        "errors": part.num_errors,
    }
