"""A batch run: one output line for each input line, in input order, through a Ray Data actor pool.

References are resolved once, before the run, and pinned. The output appears whole or not at all:
written aside, fsynced, renamed; its manifest comes last.
"""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from encoders.files.durable_file import write_durably
from orchestrator.domain.digest import digest_file
from orchestrator.domain.errors import InvalidInput, UnknownName
from orchestrator.domain.prompt_version import PromptRef, PromptVersion
from orchestrator.inference.chunk import Chunk, InputFile, read_lines
from orchestrator.inference.chunk_worker import BatchPlan, ChunkWorker
from orchestrator.inference.request import parse_request

Resolve = Callable[[PromptRef], PromptVersion]


@dataclass(frozen=True)
class BatchResult:
    """What a finished run did."""

    output: Path
    num_rows: int
    num_errors: int
    versions: tuple[PromptVersion, ...]
    seconds: float


def resolve_references(
    source: InputFile, default_alias: str, resolve: Resolve
) -> tuple[dict[str, PromptVersion], dict[str, str]]:
    """Read the input once and resolve each reference it names: versions, and why others fail."""
    versions: dict[str, PromptVersion] = {}
    unresolved: dict[str, str] = {}
    whole = Chunk(0, source.line_ends[-1], 1, source.num_lines)
    for number, line in enumerate(read_lines(source.path, whole), start=1):
        try:
            ref = parse_request(line, number, default_alias).ref
        except InvalidInput:
            continue  # the worker says why, in the line
        if str(ref) in versions or str(ref) in unresolved:
            continue
        try:
            versions[str(ref)] = resolve(ref)
        except UnknownName as error:
            unresolved[str(ref)] = error.message
    return versions, unresolved


def run_batch(
    plan: BatchPlan,
    source: InputFile,
    output: Path,
    num_workers: int,
    on_progress: Callable[[int, int], None],
) -> BatchResult:
    """Answer `source` into `output`, on the Ray cluster that is up. `on_progress` is given the
    rows done and the errors among them."""
    started = time.monotonic()
    done = errors = 0

    def answered() -> Iterator[bytes]:
        nonlocal done, errors
        for lines, num_errors in _stream(plan, source, num_workers):
            yield "".join(f"{line}\n" for line in lines).encode()
            done, errors = done + len(lines), errors + num_errors
            on_progress(done, errors)
        assert done == source.num_lines, "a batch run lost or doubled rows"

    write_durably(output, answered())
    versions = tuple({v.ref: v for v in plan.versions.values()}.values())
    result = BatchResult(output, done, errors, versions, time.monotonic() - started)
    _write_manifest(result, source)
    return result


def _stream(
    plan: BatchPlan, source: InputFile, num_workers: int
) -> Iterator[tuple[list[str], int]]:
    """Chunks' output lines, in input order."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    chunks = source.chunks(num_workers)
    rows = [{"chunk": index} for index in range(len(chunks))]
    answered = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        _ChunkActor,
        fn_constructor_args=(plan, chunks),
        compute=ray.data.ActorPoolStrategy(size=min(num_workers, len(chunks))),
        num_cpus=1,
    )
    for expected, row in enumerate(answered.iter_rows()):
        assert row["chunk"] == expected, "Ray Data changed the order of chunks"
        yield json.loads(row["lines"]), int(row["errors"])


class _ChunkActor:
    """The Ray Data face of ChunkWorker: a chunk's number in, its lines out."""

    def __init__(self, plan: BatchPlan, chunks: list[Chunk]) -> None:
        self._worker, self._chunks = ChunkWorker(plan), chunks

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        lines, errors = self._worker.answer(self._chunks[row["chunk"]])
        return {"chunk": row["chunk"], "lines": json.dumps(lines), "errors": errors}


def _write_manifest(result: BatchResult, source: InputFile) -> None:
    manifest = {
        "input": {"path": str(source.path), "sha256": source.digest, "lines": source.num_lines},
        "output": {"path": str(result.output), "sha256": digest_file(result.output)},
        "errors": result.num_errors,
        "seconds": round(result.seconds, 3),
        "versions": {
            version.ref: {"digest": version.digest, "base": version.lineage.base_fingerprint}
            for version in result.versions
        },
    }
    path = result.output.with_name(f"{result.output.name}.manifest.json")
    write_durably(path, [json.dumps(manifest, indent=2).encode()])
