"""Files of rows for tests, and what reading them back gives."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.batch_data.batch_input import Input
from orchestrator.batch_data.batch_row import BatchRow
from orchestrator.batch_data.scan import scan
from orchestrator.batch_data.shard_reader import read_shard
from orchestrator.domain.batch import BatchSettings
from orchestrator.domain.prompt_version import PromptRef

Table = Sequence[Mapping[str, str | None]]
PROMPT = BatchSettings(prompt=PromptRef("colour", 3))


def scanned(source: Path | str, shard_rows: int = 3, settings: BatchSettings = PROMPT) -> Input:
    return scan(source, shard_rows, settings, lambda ref: None)


def rows_of(
    source: Path | str, shard_rows: int = 3, settings: BatchSettings = PROMPT
) -> list[BatchRow]:
    """The rows of all shards; the description goes through JSON, as it does in a run."""
    found = scanned(source, shard_rows, settings)
    found = Input.from_json(json.loads(json.dumps(found.to_json())))
    return [row for shard in found.shards for row in read_shard(found, shard, settings)]


def write_jsonl(path: Path, table: Table) -> Path:
    path.write_bytes(b"".join(json.dumps(row).encode() + b"\n" for row in table))
    return path


def write_csv(path: Path, table: Table, line_end: str = "\r\n", delimiter: str = ",") -> Path:
    """None is an empty cell, empty text one in quotes."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(
            file, delimiter=delimiter, lineterminator=line_end, quoting=csv.QUOTE_MINIMAL
        )
        writer.writerow(table[0])
        for row in table:
            cells = [_cell(row[name], delimiter) for name in table[0]]
            file.write(delimiter.join(cells) + line_end)
    return path


def write_parquet(path: Path, table: Table, group_rows: int = 4) -> Path:
    schema = pa.schema([(name, pa.string()) for name in table[0]])
    pq.write_table(
        pa.Table.from_pylist([dict(row) for row in table], schema), path, row_group_size=group_rows
    )
    return path


def _cell(value: str | None, delimiter: str) -> str:
    if value is None:
        return ""
    if value == "" or any(mark in value for mark in ('"', "\n", "\r", delimiter)):
        return '"' + value.replace('"', '""') + '"'
    return value
