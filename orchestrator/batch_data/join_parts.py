"""One file out of a run's parts, each verified by its digest while it is read."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from orchestrator.batch_data.location import is_url, open_fs
from orchestrator.batch_data.output_file import (
    is_leftover,
    list_names,
    remove,
    write_over,
    writing,
)
from orchestrator.batch_data.output_target import RUN_MARK, OutputTarget
from orchestrator.batch_data.part_file import (
    OutputFormat,
    PartFile,
    discard_part,
    is_part,
    read_part,
)


def join_parts(folder: str, parts: Sequence[PartFile], target: OutputTarget) -> PartFile:
    """Write the parts, in the order given, as the one file `target.url`, replacing it whole or not
    at all; parts stay. Again gives the same bytes. Raises IntegrityError naming a part that is
    missing or altered."""
    digest, num_bytes = hashlib.sha256(), 0

    def counted(chunks: Iterable[bytes]) -> Iterator[bytes]:
        nonlocal num_bytes
        for chunk in chunks:
            digest.update(chunk)
            num_bytes += len(chunk)
            yield chunk

    write_over(target.url, counted(_joined((read_part(folder, part) for part in parts), target)))
    return PartFile(
        name=target.url.rpartition("/")[2],
        sha256=digest.hexdigest(),
        num_bytes=num_bytes,
        num_rows=sum(part.num_rows for part in parts),
        num_errors=sum(part.num_errors for part in parts),
    )


def remove_parts(folder: str, parts: Sequence[PartFile], target: OutputTarget) -> None:
    """Remove a joined run's parts and their folder, once the manifest is written and the ledger
    says so; again is well. Of a target that is a folder only what killed writers left goes."""
    for name in filter(is_leftover, list_names(folder)):
        remove(f"{folder}/{name}")
    if not target.is_file:
        return
    for part in parts:
        discard_part(folder, part.name)
    _remove_folder(folder)


def drop_parts(folder: str) -> None:
    """Remove the parts of a run that will never be joined, and their folder; again is well."""
    for name in list_names(folder):
        if is_leftover(name) or is_part(name):
            remove(f"{folder}/{name}")
    _remove_folder(folder)


def _remove_folder(folder: str) -> None:
    """A folder without parts; one that holds something else stays."""
    remove(f"{folder}/{RUN_MARK}")
    if list_names(folder):  # somebody else's: not ours to remove
        return
    fs, path = open_fs(folder)
    with writing(folder, "remove"), suppress(FileNotFoundError):
        if not is_url(folder):
            Path(folder).rmdir()
        elif fs.isdir(path):
            fs.rmdir(path)


def _joined(parts: Iterable[bytes], target: OutputTarget) -> Iterable[bytes]:
    if target.format is OutputFormat.JSONL:
        return parts
    from orchestrator.batch_data.parquet_output import join_parquet

    return join_parquet(parts)
