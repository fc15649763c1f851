"""Rows of a Parquet file, read batch by batch.

Text, numbers and booleans are given as they are, dates, times and decimals as Arrow writes them as
text; anything nested becomes a Python list or dict, bytes stay bytes. A page of the file is decoded
whole: its size, which whoever wrote the file chose, bounds the memory.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from orchestrator.batch_data.location import open_file, reading
from orchestrator.batch_data.text_rows import check_columns
from orchestrator.domain.errors import InvalidData, TuttiError

_BATCH_ROWS = 256
_BUFFER_BYTES = 1 << 20
_WRITTEN_AS_TEXT = (
    pa.types.is_timestamp,
    pa.types.is_date,
    pa.types.is_time,
    pa.types.is_decimal,
)


@contextmanager
def open_parquet(place: str, name: str) -> Iterator[pq.ParquetFile]:
    """Raises InvalidData for what is no Parquet file, or is damaged where it is read."""
    with reading(place), open_file(place) as file:
        try:
            yield pq.ParquetFile(file, buffer_size=_BUFFER_BYTES, pre_buffer=False)
        except TuttiError:
            raise
        except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
            reason = str(error).partition("\n")[0][:200]
            raise InvalidData(f"{name}: not a Parquet file that can be read: {reason}") from error


def parquet_columns(file: pq.ParquetFile, name: str) -> tuple[str, ...]:
    """The names of the columns. Raises InvalidData for two of one name."""
    columns = tuple(file.schema_arrow.names)
    if not columns:
        raise InvalidData(f"{name}: it has no columns")
    check_columns(columns, name)
    return columns


def read_rows(file: pq.ParquetFile, start: int, stop: int | None) -> Iterator[tuple[Any, ...]]:
    """Rows `start` to `stop` (from 0, exclusive; None: all), a value for each column."""
    group, skipped = 0, start
    sizes = [file.metadata.row_group(index).num_rows for index in range(file.num_row_groups)]
    while group < len(sizes) and skipped >= sizes[group]:
        skipped -= sizes[group]
        group += 1
    if group == len(sizes):
        return
    left = None if stop is None else stop - start
    groups = list(range(group, len(sizes)))
    for batch in file.iter_batches(_BATCH_ROWS, row_groups=groups, use_threads=False):
        offset = min(skipped, batch.num_rows)
        skipped -= offset
        wanted = batch.slice(offset, left)
        yield from zip(*map(_values, wanted.columns), strict=True)
        left = None if left is None else left - wanted.num_rows
        if left == 0:
            return


def row_bytes(values: tuple[Any, ...]) -> bytes:
    """What stands for a row's values in its shard's digest."""
    return repr(values).encode("utf-8", "surrogatepass")


def _values(column: pa.Array) -> list[Any]:
    kind = column.type
    if pa.types.is_dictionary(kind):
        return _values(column.dictionary_decode())
    if pa.types.is_float16(kind):
        return column.cast(pa.float32()).to_pylist()  # type: ignore[no-any-return]
    if any(is_kind(kind) for is_kind in _WRITTEN_AS_TEXT):
        return column.cast(pa.string()).to_pylist()  # type: ignore[no-any-return]
    try:
        return column.to_pylist()  # type: ignore[no-any-return]
    except UnicodeDecodeError:
        return [_value(column[index]) for index in range(len(column))]


def _value(scalar: pa.Scalar) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError as error:
        return InvalidData(f"not UTF-8 text: {error.reason} at byte {error.start}")
