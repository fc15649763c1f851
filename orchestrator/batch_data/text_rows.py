"""What a row of JSONL or CSV says: values by key, or why it cannot be read.

CSV is RFC 4180's, in UTF-8 with or without a byte order mark, its first row the header; TSV is the
same with tabs. A cell that is empty and unquoted is a value that is not there, `""` is empty text.
"""

import codecs
import reprlib
from collections.abc import Sequence
from typing import Any

from encoders.files.untrusted_file import parse_json
from orchestrator.batch_data.batch_input import InputFormat
from orchestrator.batch_data.batch_row import Record
from orchestrator.batch_data.text_records import MAX_ROW_BYTES, Quotes, TextRecord
from orchestrator.domain.errors import InvalidData

MAX_COLUMNS = 10_000
DELIMITERS = {InputFormat.CSV: ",", InputFormat.TSV: "\t"}


def quotes_of(file_format: InputFormat) -> Quotes | None:
    """What follows the quotes of a row; None where a row is a line."""
    delimiter = DELIMITERS.get(file_format)
    return None if delimiter is None else Quotes(delimiter.encode())


def text_record(record: TextRecord, file_format: InputFormat, columns: Sequence[str]) -> Record:
    """A row of JSONL, or of CSV or TSV under its header's columns."""
    if file_format is InputFormat.JSONL:
        return json_record(record)
    return csv_record(record, columns, DELIMITERS[file_format])


def json_record(record: TextRecord) -> Record:
    """A line of JSONL. An empty line is an error: each line has one row of output."""
    try:
        return Record(record.line, _json_object(_data(record)))
    except InvalidData as error:
        return Record(record.line, error)


def csv_record(record: TextRecord, columns: Sequence[str], delimiter: str) -> Record:
    """A row of CSV under its header's columns."""
    try:
        cells = split_cells(_text(_data(record)), delimiter)
        if len(cells) != len(columns):
            raise InvalidData(
                f"{len(cells)} cells; the header has {len(columns)}"
                + (" (an empty line)" if cells == [None] else "")
            )
    except InvalidData as error:
        return Record(record.line, error)
    return Record(record.line, dict(zip(columns, cells, strict=True)))


def read_header(record: TextRecord | None, name: str, delimiter: str) -> tuple[str, ...]:
    """A CSV file's columns. Raises InvalidData, opened by the file's `name`, for none."""
    if record is None:
        raise InvalidData(f"{name}: the file is empty", "Give a header and at least one row.")
    if record.is_open:
        raise unclosed(name, record)
    try:
        cells = split_cells(_text(_data(record)), delimiter)
    except InvalidData as error:
        raise InvalidData(f"{name}: line 1: the header: {error.message}") from error
    columns = tuple(cell for cell in cells if cell is not None and cell.strip())
    if len(columns) != len(cells):
        raise InvalidData(
            f"{name}: line 1: a column of the header has no name",
            "The first line of a CSV file names its columns.",
        )
    check_columns(columns, name)
    return columns


def check_columns(columns: Sequence[str], name: str) -> None:
    """Raise InvalidData for columns of one name, or too many."""
    if len(columns) > MAX_COLUMNS:
        raise InvalidData(f"{name}: {len(columns)} columns; at most {MAX_COLUMNS}")
    seen: set[str] = set()
    for column in columns:
        if column in seen:
            raise InvalidData(f"{name}: two columns have the name {reprlib.repr(column)}")
        seen.add(column)


def unclosed(name: str, record: TextRecord) -> InvalidData:
    """A quote without an end takes all that follows into one row: nobody means that."""
    return InvalidData(
        f"{name}: line {record.line}: a cell of this row opens with a quote that is never closed",
        'Close it; a quote within a quoted cell is written twice: "".',
    )


def split_cells(text: str, delimiter: str) -> list[str | None]:
    """A row's cells; None for an empty one without quotes. Raises InvalidData for text after a
    closing quote."""
    if '"' not in text:
        return [cell or None for cell in text.split(delimiter)]
    cells: list[str | None] = []
    position = 0
    while True:
        cell, position = _cell(text, position, delimiter)
        cells.append(cell)
        if position > len(text):
            return cells


def _cell(text: str, start: int, delimiter: str) -> tuple[str | None, int]:
    """The cell at `start`, and where the next one starts: beyond the text after the last."""
    if not text.startswith('"', start):
        end = text.find(delimiter, start)
        end = len(text) if end < 0 else end
        return text[start:end] or None, end + 1
    end = text.find('"', start + 1)
    while end >= 0 and text.startswith('"', end + 1):
        end = text.find('"', end + 2)
    if end < 0:
        raise InvalidData("a cell opens with a quote that is never closed")
    cell = text[start + 1 : end].replace('""', '"')
    if end + 1 < len(text) and not text.startswith(delimiter, end + 1):
        raise InvalidData("text follows a cell's closing quote")
    return cell, end + 2


def _data(record: TextRecord) -> bytes:
    if record.data is None:
        raise InvalidData(f"{record.num_bytes} bytes; at most {MAX_ROW_BYTES}")
    return record.data.removeprefix(codecs.BOM_UTF8) if record.line == 1 else record.data


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise InvalidData(f"not UTF-8 text: {error.reason} at byte {error.start}") from error


def _json_object(data: bytes) -> dict[str, Any]:
    if not data.strip():
        raise InvalidData("not JSON: an empty line")
    try:
        value = parse_json(data)
    except UnicodeDecodeError as error:
        raise InvalidData(f"not UTF-8 text: {error.reason} at byte {error.start}") from error
    except (ValueError, RecursionError) as error:
        raise InvalidData(f"not JSON: {error}") from error
    if not isinstance(value, dict):
        raise InvalidData("a row is a JSON object")
    return value
