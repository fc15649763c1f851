"""What a batch run reads, as it was when the run started: files, their digests, and shards.

Frozen and JSON-able: the ledger keeps it, and workers get it. It holds no row.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class InputFormat(StrEnum):
    """How a file holds rows; its name's ending says so."""

    JSONL = "jsonl"
    CSV = "csv"
    TSV = "tsv"
    PARQUET = "parquet"


@dataclass(frozen=True)
class SourceFile:
    """One input file. `name` is its path below the folder that all input files share; `columns`
    its header's, empty for JSONL."""

    url: str
    name: str
    format: InputFormat
    sha256: str
    num_bytes: int
    num_rows: int
    columns: tuple[str, ...] = ()


@dataclass(frozen=True)
class Shard:
    """Consecutive rows of one file: the unit of claim, commit and resume.

    Rows `first_row` to `first_row + num_rows - 1` (from 1, over all files) of `files[file]`; they
    begin at `first_line` there and are its bytes (Parquet: its rows, from 0) `start` to `stop`,
    exclusive. `sha256` is of these bytes (Parquet: of these rows' values).
    """

    index: int
    file: int
    first_row: int
    num_rows: int
    first_line: int
    start: int
    stop: int
    sha256: str


@dataclass(frozen=True)
class Input:
    """All of it: `shards` cover each row of `files` once, in order."""

    source: str
    shard_rows: int
    files: tuple[SourceFile, ...]
    shards: tuple[Shard, ...]

    @property
    def num_rows(self) -> int:
        return sum(file.num_rows for file in self.files)

    def to_json(self) -> dict[str, Any]:
        """A JSON object that `from_json` takes back."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Input":
        files = tuple(
            SourceFile(
                **{
                    **file,
                    "format": InputFormat(file["format"]),
                    "columns": tuple(file["columns"]),
                }
            )
            for file in value["files"]
        )
        shards = tuple(Shard(**shard) for shard in value["shards"])
        return cls(value["source"], value["shard_rows"], files, shards)
