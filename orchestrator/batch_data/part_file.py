"""A shard's output: `part-00000.jsonl` or `.parquet`, whole or absent, the same bytes for the same
rows. The first whole file of a name stays: a late writer of the same shard cannot change it."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from orchestrator.batch_data.output_file import read_output, remove, write_new
from orchestrator.batch_data.output_row import OutputRow
from orchestrator.domain.digest import digest_bytes
from orchestrator.domain.errors import IntegrityError


class OutputFormat(StrEnum):
    JSONL = "jsonl"
    PARQUET = "parquet"


@dataclass(frozen=True)
class PartFile:
    """An output file as it lies there. JSON-able by `dataclasses.asdict`."""

    name: str
    sha256: str
    num_bytes: int
    num_rows: int
    num_errors: int


def part_name(index: int, output_format: OutputFormat) -> str:
    return f"part-{index:05d}.{output_format}"


def is_part(name: str) -> bool:
    return re.fullmatch(rf"part-[0-9]{{5,}}\.({'|'.join(OutputFormat)})", name) is not None


def write_part(
    folder: str, index: int, rows: Iterable[OutputRow], output_format: OutputFormat
) -> PartFile:
    """Write a shard's rows into `folder` (an absolute path or URL) and describe the file.

    Where a part of that name is there already it stays: an equal one is described, and so is one
    that differs but has as many rows (two workers computed the shard, the first one counts).
    Raises IntegrityError for one that is no part of this run, StoreUnavailable where the disk or
    server takes nothing.
    """
    ours = list(rows)
    data = _dump(ours, output_format)
    num_errors = sum(row.error is not None for row in ours)
    name = part_name(index, output_format)
    part = PartFile(name, digest_bytes(data), len(data), len(ours), num_errors)
    if write_new(f"{folder}/{name}", data):
        return part
    there = describe_part(folder, name)
    if there is None or there.num_rows != part.num_rows:
        raise IntegrityError(
            f"{folder}/{name}: it is not this run's part of {part.num_rows} rows, and was there "
            "before it",
            "Move it away and resume the run.",
        )
    return there


def describe_part(folder: str, name: str) -> PartFile | None:
    """A part read anew, None if it is not there. Raises IntegrityError for what is no part."""
    data = _read(folder, name)
    if data is None:
        return None
    try:
        num_rows, num_errors = _count(data, name)
    except (ValueError, RecursionError) as error:
        raise IntegrityError(
            f"{folder}/{name}: not a part of a batch run: {error}",
            "Remove the file and resume the run.",
        ) from error
    return PartFile(name, digest_bytes(data), len(data), num_rows, num_errors)


def has_part(folder: str, part: PartFile) -> bool:
    """Whether the part is there with the very bytes described."""
    data = _read(folder, part.name)
    return data is not None and digest_bytes(data) == part.sha256


def read_part(folder: str, part: PartFile) -> bytes:
    """A part's bytes. Raises IntegrityError where it is missing or altered."""
    data = _read(folder, part.name)
    if data is None or digest_bytes(data) != part.sha256:
        what = "is missing" if data is None else "was altered: its digest is another"
        raise IntegrityError(
            f"{folder}/{part.name}: the part {what}", "Resume the run: it computes the part again."
        )
    return data


def discard_part(folder: str, name: str) -> None:
    """Remove an altered part, so that it can be written again; absent is well."""
    remove(f"{folder}/{name}")


def _read(folder: str, name: str) -> bytes | None:
    try:
        return b"".join(read_output(f"{folder}/{name}"))
    except FileNotFoundError:
        return None


def _dump(rows: list[OutputRow], output_format: OutputFormat) -> bytes:
    if output_format is OutputFormat.JSONL:
        return b"".join(row.to_line() for row in rows)
    from orchestrator.batch_data.parquet_output import dump_parquet

    return dump_parquet(rows)


def _count(data: bytes, name: str) -> tuple[int, int]:
    if name.endswith(f".{OutputFormat.PARQUET}"):
        from orchestrator.batch_data.parquet_output import count_rows

        return count_rows(data)
    if data and not data.endswith(b"\n"):
        raise ValueError("its last line has no end")
    values = [json.loads(line) for line in data.splitlines()]
    if not all(isinstance(value, dict) and "row" in value for value in values):
        raise ValueError("a line is no row of output")
    return len(values), sum("error" in value for value in values)
