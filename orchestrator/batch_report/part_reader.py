"""Reads the rows of a run's output files, streamed: JSONL or Parquet, a folder's or on any fsspec
URL. A file's digest is checked where the ledger has one: before Parquet is opened, and of JSONL
with its last row.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import IO, Any

import fsspec

from orchestrator.batch_report.answer_row import AnswerRow
from orchestrator.domain.errors import IntegrityError

MAX_LINE_BYTES = 1 << 26
CHUNK_BYTES = 1 << 20
BATCH_ROWS = 1024
REMEDY = "`tutti batch resume RUN` makes parts that were lost or altered again."


@dataclass(frozen=True)
class OutputFile:
    """A file of rows by path or URL; `.parquet` is Parquet, all else JSONL."""

    url: str
    sha256: str | None = None


def read_rows(files: Iterable[OutputFile]) -> Iterator[AnswerRow]:
    """All rows, in order. Raises IntegrityError, naming file and row, for what the run did not
    write."""
    for file in files:
        try:
            with fsspec.open(file.url, "rb") as opened:
                is_parquet = file.url.lower().endswith(".parquet")
                yield from (_read_parquet if is_parquet else _read_jsonl)(opened, file)
        except OSError as error:
            raise IntegrityError(f"{file.url}: cannot be read: {error}", REMEDY) from error


def _read_jsonl(opened: IO[bytes], file: OutputFile) -> Iterator[AnswerRow]:
    digest = hashlib.sha256()
    number = 0
    while line := opened.readline(MAX_LINE_BYTES):
        number += 1
        digest.update(line)
        place = f"{file.url}:{number}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise IntegrityError(f"{place}: not JSON: {error}", REMEDY) from error
        yield AnswerRow.parse(value, place)
    _require(digest.hexdigest(), file)


def _read_parquet(opened: IO[bytes], file: OutputFile) -> Iterator[AnswerRow]:
    import pyarrow
    import pyarrow.parquet

    if file.sha256 is not None:
        digest = hashlib.sha256()
        while chunk := opened.read(CHUNK_BYTES):
            digest.update(chunk)
        _require(digest.hexdigest(), file)
        opened.seek(0)
    number = 0
    try:
        table = pyarrow.parquet.ParquetFile(opened)
        columns = [name for name in table.schema_arrow.names if name in _COLUMNS]
        for batch in table.iter_batches(BATCH_ROWS, columns=columns):
            for value in batch.to_pylist(maps_as_pydicts="strict"):
                number += 1
                yield AnswerRow.parse(value, f"{file.url}:{number}")
    except (pyarrow.ArrowException, ValueError, KeyError) as error:
        raise IntegrityError(f"{file.url}: not Parquet of a batch run: {error}", REMEDY) from error


#: What a report counts; embeddings stay on the disk.
_COLUMNS = frozenset(AnswerRow.__dataclass_fields__)


def _require(found: Any, file: OutputFile) -> None:
    if file.sha256 not in (None, found):
        raise IntegrityError(
            f"{file.url}: its sha256 is {found}, the run wrote {file.sha256}", REMEDY
        )
