"""A shard's rows, read by a worker from its bytes alone, and the proof that these are unchanged."""

import hashlib
from collections.abc import Callable, Iterator

from orchestrator.batch_data.batch_input import Input, InputFormat, Shard, SourceFile
from orchestrator.batch_data.batch_row import BatchRow, Record, batch_row
from orchestrator.batch_data.location import file_size, read_chunks
from orchestrator.batch_data.text_records import split_records
from orchestrator.batch_data.text_rows import quotes_of, text_record
from orchestrator.domain.batch import BatchSettings
from orchestrator.domain.errors import InvalidData


def read_shard(source: Input, shard: Shard, settings: BatchSettings) -> Iterator[BatchRow]:
    """The shard's `num_rows` rows, in order, with bounded memory.

    Raises InvalidData, naming file and rows, where the file is gone or is not what it was when
    the run started: for another size before the first row, for other bytes after the last one. So
    take all rows before using any. Raises StoreUnavailable where a server is away.
    """
    file = source.files[shard.file]
    if file_size(file.url) not in (None, file.num_bytes):
        raise _changed(file, shard)
    name = file.name if len(source.files) > 1 else None
    is_parquet = file.format is InputFormat.PARQUET
    digest = hashlib.sha256()
    records = (_parquet if is_parquet else _text)(file, shard, digest.update)
    unit, num_rows = "row" if is_parquet else "line", 0
    for record in records:
        if num_rows == shard.num_rows:
            raise _changed(file, shard)
        yield batch_row(record, shard.first_row + num_rows, name, unit, settings)
        num_rows += 1
    if num_rows != shard.num_rows or digest.hexdigest() != shard.sha256:
        raise _changed(file, shard)


def _text(file: SourceFile, shard: Shard, on_bytes: Callable[[bytes], None]) -> Iterator[Record]:
    chunks = read_chunks(file.url, shard.start, shard.stop)
    for record in split_records(chunks, shard.first_line, quotes_of(file.format), on_bytes):
        yield text_record(record, file.format, file.columns)


def _parquet(file: SourceFile, shard: Shard, on_bytes: Callable[[bytes], None]) -> Iterator[Record]:
    from orchestrator.batch_data.parquet_rows import (
        open_parquet,
        parquet_columns,
        read_rows,
        row_bytes,
    )

    with open_parquet(file.url, file.url) as opened:
        if parquet_columns(opened, file.url) != file.columns:
            raise _changed(file, shard)
        rows = read_rows(opened, shard.start, shard.stop)
        for line, values in enumerate(rows, start=shard.first_line):
            on_bytes(row_bytes(values))
            yield Record(line, dict(zip(file.columns, values, strict=True)))


def _changed(file: SourceFile, shard: Shard) -> InvalidData:
    last = shard.first_row + shard.num_rows - 1
    return InvalidData(
        f"{file.url}: rows {shard.first_row} to {last} (from line {shard.first_line}) are not what "
        "they were when the run started: the file was changed",
        "Restore the file and resume the run, or start a new one.",
    )
