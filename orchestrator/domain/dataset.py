"""A data set: JSONL rows with their digest. Every row is checked before anything is done with it.

A row is one JSON object a line; its values are text or numbers (numbers become their text).
"""

import json
import re
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.domain.digest import digest_bytes
from orchestrator.domain.errors import InvalidData

MAX_BYTES = 1 << 30
MAX_LINE_CHARS = 1 << 20

Row = Mapping[str, str]


@dataclass(frozen=True)
class Dataset:
    """Rows of one file, in order. `lines[i]` is the line number of `rows[i]`, from 1."""

    name: str
    digest: str
    rows: tuple[Row, ...]
    lines: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def place(self, index: int) -> str:
        """`file:line` of a row, for errors."""
        return f"{self.name}:{self.lines[index]}"


def read_dataset(path: Path, fields: Iterable[str]) -> Dataset:
    """Read a JSONL file whose rows must have `fields`; raise InvalidData naming file and line."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise InvalidData(f"{path}: not a file")
        if status.st_size > MAX_BYTES:
            raise InvalidData(
                f"{path}: {status.st_size} bytes; a data file has at most {MAX_BYTES}"
            )
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise InvalidData(
            f"{path}: no such file", "Data paths in a spec are relative to the spec's folder."
        ) from error
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise InvalidData(f"{path}: cannot be read: {error}") from error
    return parse_dataset(data, str(path), fields)


def parse_dataset(data: bytes, name: str, fields: Iterable[str]) -> Dataset:
    """Parse JSONL bytes; blank lines are skipped."""
    needed = tuple(fields)
    rows: list[Row] = []
    lines: list[int] = []
    for number, line in enumerate(data.splitlines(), start=1):
        if line.strip():
            rows.append(_parse_row(line, f"{name}:{number}", needed))
            lines.append(number)
    if not rows:
        raise InvalidData(f"{name}: the data set is empty", "Give at least one row.")
    return Dataset(name, digest_bytes(data), tuple(rows), tuple(lines))


def text_fields(value: Any, place: str, needed: Iterable[str]) -> Row:
    """Check one decoded row against the fields it needs; raise InvalidData."""
    if not isinstance(value, dict):
        raise InvalidData(f"{place}: a row is a JSON object, this is {type(value).__name__}")
    row: dict[str, str] = {}
    for key in needed:
        if key not in value:
            raise InvalidData(
                f"{place}: the row lacks the field {key!r}; it has "
                f"{', '.join(map(repr, value)) or 'no fields'}"
            )
    for key, field in value.items():
        if isinstance(field, bool) or not isinstance(field, str | int | float):
            if key in needed:
                raise InvalidData(
                    f"{place}: the field {key!r} must be text or a number, this is "
                    f"{json.dumps(field)[:60]}"
                )
            continue
        row[key] = str(field)
        if not is_text(row[key]):
            raise InvalidData(f"{place}: the field {key!r} holds half a surrogate pair")
    return row


def is_text(value: str) -> bool:
    """Whether `value` can be written as UTF-8: JSON's escapes can name what cannot."""
    return not re.search("[\ud800-\udfff]", value)


def _parse_row(line: bytes, place: str, needed: tuple[str, ...]) -> Row:
    if len(line) > MAX_LINE_CHARS:
        raise InvalidData(f"{place}: the line has {len(line)} bytes; at most {MAX_LINE_CHARS}")
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise InvalidData(f"{place}: not UTF-8 text: {error.reason}") from error
    except (ValueError, RecursionError) as error:
        raise InvalidData(
            f"{place}: not JSON: {error}", "Each line must be one JSON object."
        ) from error
    return text_fields(value, place, needed)
