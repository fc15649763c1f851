"""Rows cut out of bytes: wherever the bytes were cut before, and as Python's csv reads them."""

import csv
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.batch_data import text_records
from orchestrator.batch_data.text_records import Quotes, TextRecord, split_records
from orchestrator.batch_data.text_rows import split_cells
from orchestrator.domain.errors import InvalidData

pieces = st.lists(st.text('",a\n\r', max_size=6).map(str.encode), max_size=12)
csv_text = st.text('",ab\n', max_size=30)


def split(chunks: list[bytes], is_csv: bool) -> list[TextRecord]:
    seen: list[bytes] = []
    quotes = Quotes(b",") if is_csv else None
    records = list(split_records(chunks, 1, quotes, seen.append))
    assert b"".join(seen) == b"".join(chunks)
    return records


@pytest.mark.parametrize("is_csv", [False, True])
@given(chunks=pieces)
@settings(max_examples=200, deadline=None)
def test_it_does_not_matter_where_the_bytes_were_cut(is_csv: bool, chunks: list[bytes]) -> None:
    whole = b"".join(chunks)
    records = split(chunks, is_csv)
    assert records == split([whole], is_csv) == split([bytes([each]) for each in whole], is_csv)
    assert sum(record.num_bytes for record in records) == len(whole)


@given(pieces)
@settings(max_examples=100, deadline=None)
def test_a_row_of_jsonl_is_a_line(chunks: list[bytes]) -> None:
    whole = b"".join(chunks)
    lines = whole.removesuffix(b"\n").split(b"\n") if whole else []
    records = split(chunks, is_csv=False)
    assert [record.data for record in records] == lines
    assert [record.line for record in records] == list(range(1, len(lines) + 1))


@given(csv_text)
@settings(max_examples=500, deadline=None)
def test_csv_is_read_as_pythons_strict_reader_reads_it(text: str) -> None:
    try:
        expected = [row or [""] for row in csv.reader(io.StringIO(text, newline=""), strict=True)]
    except csv.Error:
        expected = None
    records = split([text.encode()], is_csv=True)
    try:
        rows = [split_cells((record.data or b"").decode(), ",") for record in records]
    except InvalidData:
        assert expected is None
        return
    assert [[cell or "" for cell in row] for row in rows] == expected


@given(csv_text)
@settings(max_examples=200, deadline=None)
def test_a_row_is_open_where_its_cells_are(text: str) -> None:
    """A row may be wrong twice: its first error is the one that is told."""
    for record in split([text.encode()], is_csv=True):
        try:
            split_cells((record.data or b"").decode(), ",")
        except InvalidData as error:
            assert record.is_open or "never closed" not in error.message  # noqa: PT017
        else:
            assert not record.is_open


@pytest.mark.parametrize("is_csv", [False, True])
@pytest.mark.parametrize("cut", [1, 3, 7, 100])
def test_a_row_over_the_limit_is_dropped_and_counted(
    monkeypatch: pytest.MonkeyPatch, is_csv: bool, cut: int
) -> None:
    monkeypatch.setattr(text_records, "MAX_ROW_BYTES", 5)
    data = b"12345\n123456\n1\n" + b"x" * 50
    chunks = [data[start : start + cut] for start in range(0, len(data), cut)]
    assert split(chunks, is_csv) == [
        TextRecord(1, b"12345", 6),
        TextRecord(2, None, 7),
        TextRecord(3, b"1", 2),
        TextRecord(4, None, 50),
    ]
