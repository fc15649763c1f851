"""Output rows as Parquet: one schema for all parts, and the same bytes for the same rows."""

import io
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.batch_data.output_row import OutputRow

SCHEMA = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("file", pa.string()),
        pa.field("line", pa.int64(), nullable=False),
        pa.field("id", pa.string()),
        pa.field("task", pa.string()),
        pa.field("version", pa.int64()),
        pa.field("digest", pa.string()),
        pa.field("answer", pa.string()),
        pa.field("score", pa.float64()),
        pa.field("scores", pa.map_(pa.string(), pa.float64())),
        pa.field("tokens", pa.int64()),
        pa.field("embedding", pa.list_(pa.float32())),
        pa.field("expected", pa.string()),
        pa.field("error", pa.string()),
    ]
)
_GROUP_ROWS = 1 << 16
_GROUP_BYTES = 1 << 25


def dump_parquet(rows: Iterable[OutputRow]) -> bytes:
    """The bytes of a Parquet file of one row group."""
    file = io.BytesIO()
    table = pa.Table.from_pylist([_values(row) for row in rows], SCHEMA)
    with _writer(file) as writer:
        writer.write_table(table, row_group_size=max(1, table.num_rows))
    return file.getvalue()


def count_rows(data: bytes) -> tuple[int, int]:
    """The rows of a part and the errors among them. Raises ValueError for what is none."""
    try:
        file = pq.ParquetFile(pa.BufferReader(data))
        if not file.schema_arrow.equals(SCHEMA):
            raise ValueError("its columns are others")
        errors = file.read(["error"]).column("error")
    except (pa.ArrowException, OSError) as error:
        raise ValueError(str(error)) from error
    return len(errors), len(errors) - errors.null_count


def join_parquet(parts: Iterable[bytes]) -> Iterator[bytes]:
    """One file's bytes, piece by piece. Row groups are filled up to 65,536 rows or 32 MB, by
    what the parts hold alone."""
    sink = _Sink()
    with _writer(sink) as writer:
        kept: list[pa.Table] = []
        for part in parts:
            kept.append(pq.read_table(pa.BufferReader(part), schema=SCHEMA))
            num_rows = sum(table.num_rows for table in kept)
            if num_rows >= _GROUP_ROWS or sum(table.nbytes for table in kept) >= _GROUP_BYTES:
                _write_group(writer, kept)
                kept = []
            yield from sink.take()
        if kept:
            _write_group(writer, kept)
    yield from sink.take()


def _write_group(writer: pq.ParquetWriter, tables: Sequence[pa.Table]) -> None:
    table = pa.concat_tables(tables)
    writer.write_table(table, row_group_size=max(1, table.num_rows))


def _writer(file: Any) -> pq.ParquetWriter:
    return pq.ParquetWriter(file, SCHEMA, compression="zstd", version="2.6")


def _values(row: OutputRow) -> dict[str, Any]:
    values = row.to_json()
    if "id" in values:
        values["id"] = str(values["id"])
    if "scores" in values:
        values["scores"] = list(values["scores"].items())
    return values


class _Sink(io.RawIOBase):
    """Takes what a writer writes, and gives it on."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._position = 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def write(self, data: Any) -> int:
        piece = bytes(data)
        self._pieces.append(piece)
        self._position += len(piece)
        return len(piece)

    def take(self) -> list[bytes]:
        pieces, self._pieces = self._pieces, []
        return pieces
