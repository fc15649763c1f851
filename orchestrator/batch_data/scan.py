"""Reads a batch's input once, with bounded memory, and cuts it into shards.

A Parquet file is read twice: its bytes for the digest, its rows for their values.
"""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

from orchestrator.batch_data.batch_input import Input, InputFormat, SourceFile
from orchestrator.batch_data.batch_row import Record, batch_row
from orchestrator.batch_data.input_files import FoundFile, find_files
from orchestrator.batch_data.location import absolute, read_chunks
from orchestrator.batch_data.shard_cutter import ShardCutter
from orchestrator.batch_data.text_records import split_records
from orchestrator.batch_data.text_rows import (
    DELIMITERS,
    quotes_of,
    read_header,
    text_record,
    unclosed,
)
from orchestrator.domain.batch import BatchSettings
from orchestrator.domain.errors import InvalidData, InvalidInput
from orchestrator.domain.prompt_version import PromptRef

DEFAULT_SHARD_ROWS = 1024
MAX_SHARD_ROWS = 1 << 20


def scan(
    source: str | Path,
    shard_rows: int,
    settings: BatchSettings,
    on_ref: Callable[[PromptRef], None],
) -> Input:
    """Read `source` (a file, folder or glob; a path or fsspec URL as text) and describe it.

    `on_ref` is given the reference of each usable row, again where it comes again; with
    `settings.prompt` that prompt once. A shard ends after `shard_rows` rows, or with the row
    that brings it to 32 MB. Raises InvalidData where there is no input, a file is empty, is not of
    its format, or lacks a column that `settings` need; InvalidInput for a wrong `shard_rows`;
    StoreUnavailable where a server is away.
    """
    if not 1 <= shard_rows <= MAX_SHARD_ROWS:
        raise InvalidInput(f"{shard_rows} rows a shard: expected 1 to {MAX_SHARD_ROWS}")
    cutter, files = ShardCutter(shard_rows), []
    for found in find_files(source):
        files.append(_Scan(found, cutter, settings, on_ref).run())
    if settings.prompt is not None:
        on_ref(settings.prompt)
    return Input(absolute(source), shard_rows, tuple(files), tuple(cutter.shards))


class _Scan:
    """One file on its way into shards."""

    def __init__(
        self,
        found: FoundFile,
        cutter: ShardCutter,
        settings: BatchSettings,
        on_ref: Callable[[PromptRef], None],
    ) -> None:
        self._found, self._cutter, self._settings, self._on_ref = found, cutter, settings, on_ref
        self._digest, self._num_bytes, self._columns = hashlib.sha256(), 0, ()

    _columns: tuple[str, ...]

    def run(self) -> SourceFile:
        found, before = self._found, self._cutter.num_rows
        is_parquet = found.format is InputFormat.PARQUET
        for record in self._parquet() if is_parquet else self._text():
            if self._settings.prompt is None:
                row = batch_row(record, 0, None, "line", self._settings)
                if row.error is None and row.ref is not None:
                    self._on_ref(row.ref)
        self._cutter.end_shard()
        num_rows = self._cutter.num_rows - before
        if num_rows == 0:
            what = "the file is empty" if self._num_bytes == 0 else "it has no rows"
            raise InvalidData(f"{found.url}: {what}", "Give at least one row.")
        digest = self._digest.hexdigest()
        return SourceFile(
            found.url, found.name, found.format, digest, self._num_bytes, num_rows, self._columns
        )

    def _text(self) -> Iterator[Record]:
        found = self._found
        chunks = self._counted(read_chunks(found.url))
        records = split_records(chunks, 1, quotes_of(found.format), self._cutter.feed)
        start = 0
        if found.format in DELIMITERS:
            header = next(records, None)
            columns = read_header(header, found.url, DELIMITERS[found.format])
            start = header.num_bytes if header is not None else 0
            self._know_columns(columns)
        self._cutter.begin_file(start)
        for record in records:
            if record.is_open:
                raise unclosed(found.url, record)
            self._cutter.add_row(record.line, record.num_bytes)
            yield text_record(record, found.format, self._columns)

    def _parquet(self) -> Iterator[Record]:
        from orchestrator.batch_data.parquet_rows import (
            open_parquet,
            parquet_columns,
            read_rows,
            row_bytes,
        )

        for _ in self._counted(read_chunks(self._found.url)):
            pass
        with open_parquet(self._found.url, self._found.url) as file:
            self._know_columns(parquet_columns(file, self._found.url))
            self._cutter.begin_file(0)
            for line, values in enumerate(read_rows(file, 0, None), start=1):
                self._cutter.feed(row_bytes(values))
                self._cutter.add_row(line, 1)
                yield Record(line, dict(zip(self._columns, values, strict=True)))

    def _counted(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            self._digest.update(chunk)
            self._num_bytes += len(chunk)
            yield chunk

    def _know_columns(self, columns: tuple[str, ...]) -> None:
        """Raise InvalidData unless the columns that the settings need are there."""
        self._columns = columns
        if "fields" in columns:  # a column of objects, which say themselves what they hold
            return
        for name in _needed(self._settings):
            if name not in columns:
                shown = ", ".join(map(repr, columns[:20]))
                raise InvalidData(
                    f"{self._found.url}: it has no column {name!r}; it has {shown}",
                    "Give --prompt TASK@ALIAS where no column names the task, and the column of a "
                    "field of another name with --map FIELD=COLUMN.",
                )


def _needed(settings: BatchSettings) -> list[str]:
    needed = list(settings.columns.values())
    if settings.prompt is None:
        needed.append(settings.columns.get("task", "task"))
    if settings.answers_field is not None:
        needed.append(settings.columns.get(settings.answers_field, settings.answers_field))
    return needed
