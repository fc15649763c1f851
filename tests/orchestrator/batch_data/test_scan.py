"""What is refused before a run, what is said of single rows, and which references there are."""

import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from orchestrator.batch_data.batch_input import Input, InputFormat
from orchestrator.batch_data.scan import scan
from orchestrator.batch_data.shard_cutter import MAX_SHARD_BYTES
from orchestrator.batch_data.shard_reader import read_shard
from orchestrator.domain.batch import BatchSettings
from orchestrator.domain.dataset import MAX_LINE_CHARS
from orchestrator.domain.errors import InvalidData, InvalidInput
from orchestrator.domain.prompt_version import PromptRef
from tests.orchestrator.batch_data.tables import PROMPT, rows_of, scanned, write_parquet

NAMED = BatchSettings()


def write(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def errors_of(path: Path, settings: BatchSettings = PROMPT) -> list[str | None]:
    return [row.error for row in rows_of(path, 2, settings)]


def refusal(path: Path | str, settings: BatchSettings = PROMPT) -> str:
    with pytest.raises(InvalidData) as caught:
        scanned(path, 3, settings)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.jsonl", b"", "the file is empty"),
        ("a.csv", b"", "the file is empty"),
        ("a.tsv", b"", "the file is empty"),
        ("a.csv", b"\xef\xbb\xbf", "a column of the header has no name"),
        ("a.csv", b"a,b\r\n", "it has no rows"),
        ("a.csv", b"\n1,2\n", "line 1: a column of the header has no name"),
        ("a.csv", b"a,,b\n1,2,3\n", "line 1: a column of the header has no name"),
        ("a.csv", b"a,b,a\n1,2,3\n", "two columns have the name 'a'"),
        ("a.csv", b'"a"x,b\n1,2\n', "line 1: the header: text follows a cell's closing quote"),
        ("a.csv", b"\xff\xfea,b\n1,2\n", "line 1: the header: not UTF-8 text"),
        ("a.csv", b'a,b\n1,2\n1,"2\n3,4\n', "line 3: a cell of this row opens with a quote that"),
        ("a.csv", b'"a,b\n1,2\n', "line 1: a cell of this row opens with a quote that is never"),
        ("a.csv", b"a" * (MAX_LINE_CHARS + 1) + b"\n1\n", f"bytes; at most {MAX_LINE_CHARS}"),
        ("a.csv", b",".join(b"%d" % n for n in range(10_001)) + b"\n1\n", "10001 columns; at most"),
        ("a.parquet", b"", "not a Parquet file that can be read"),
        ("a.parquet", b"PAR1" + bytes(100) + b"PAR1", "not a Parquet file that can be read"),
        ("a.txt", b"{}\n", "its name does not say its format"),
        ("a.jsonl.gz", b"{}\n", "its name does not say its format"),
    ],
)
def test_what_is_no_input_is_refused(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    path = write(tmp_path, name, data)
    assert f"{path}: " in refusal(path)
    assert message in refusal(path)


def test_parquet_without_rows_or_with_columns_of_one_name_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"a": pa.array([], pa.string())}), path)
    assert "it has no rows" in refusal(path)
    pq.write_table(pa.table([pa.array(["x"]), pa.array(["y"])], names=["a", "a"]), path)
    assert "two columns have the name 'a'" in refusal(path)


@pytest.mark.parametrize("name", ["a.csv", "a.parquet"])
def test_a_column_that_the_run_needs_must_be_there(tmp_path: Path, name: str) -> None:
    table = [{"word": "a1"}]
    path = tmp_path / name
    if name == "a.csv":
        path.write_bytes(b"word\na1\n")
    else:
        write_parquet(path, table)
    assert "it has no column 'task'; it has 'word'" in refusal(path, NAMED)
    for settings in (
        BatchSettings(prompt=PROMPT.prompt, columns={"word": "text"}),
        BatchSettings(prompt=PROMPT.prompt, answers_field="text"),
    ):
        assert "it has no column 'text'" in refusal(path, settings)
    assert errors_of(path, BatchSettings(columns={"task": "word"})) == [None]


def test_bad_lines_of_jsonl_are_errors_of_their_rows(tmp_path: Path) -> None:
    lines = [
        b'\xef\xbb\xbf{"word": "a1"}\r',
        b"",
        b"\r",
        b"no json",
        b'{"word": "\xff"}',
        b"[]",
        b'{"word": "a1"',
        b'{"word": 1, "word": 2}',
        b'{"word": NaN}',
        b'{"word": 1e999}',
        b'{"word": "\\ud800"}',
        b'{"word": "\\u0000"}',
        b'{"word": "\0"}',
        b'\xef\xbb\xbf{"word": "a1"}',
        b"[" * 100_000,
        b'{"word": "' + b"a" * MAX_LINE_CHARS + b'"}',
        b'{"word": ' + b"9" * 5000 + b"}",
        b'{"word": "a2"}',
    ]
    expected = [
        None,
        "line 2: not JSON: an empty line",
        "line 3: not JSON: an empty line",
        "line 4: not JSON: ",
        "line 5: not UTF-8 text: invalid start byte at byte 10",
        "line 6: a row is a JSON object",
        "line 7: not JSON: ",
        "line 8: not JSON: an object names a key twice",
        "line 9: not JSON: NaN is no JSON number",
        "line 10: the field 'word' holds inf",
        "line 11: the field 'word' holds half a surrogate pair",
        "line 12: the field 'word' holds a NUL character",
        "line 13: not JSON: Invalid control character",
        "line 14: not JSON: ",
        "line 15: not JSON: ",
        f"line 16: {MAX_LINE_CHARS + 13} bytes; at most {MAX_LINE_CHARS}",
        "line 17: not JSON: ",
        None,
    ]
    found = errors_of(write(tmp_path, "a.jsonl", b"\n".join(lines)))
    assert len(found) == len(expected)
    for error, start in zip(found, expected, strict=True):
        assert (error is None) if start is None else (error or "").startswith(start)


def test_bad_rows_of_csv_are_errors_of_their_rows(tmp_path: Path) -> None:
    data = (
        b'\xef\xbb\xbfword,note\r\na1,"x\r\ny"\r\n1\r\n1,2,3\r\n\r\n\xff,b\r\n"a"b,c\r\n'
        b'a"b,"c""d"\r\na\0,b\r\n' + b"a" * MAX_LINE_CHARS + b",b\r\nlast,"
    )
    path = write(tmp_path, "a.csv", data)
    rows = rows_of(path, 2)
    assert [row.line for row in rows] == [2, 4, 5, 6, 7, 8, 9, 10, 11, 12]
    assert [row.error for row in rows] == [
        None,
        "line 4: 1 cells; the header has 2",
        "line 5: 3 cells; the header has 2",
        "line 6: 1 cells; the header has 2 (an empty line)",
        "line 7: not UTF-8 text: invalid start byte at byte 0",
        "line 8: text follows a cell's closing quote",
        None,
        "line 10: the field 'word' holds a NUL character",
        f"line 11: {MAX_LINE_CHARS + 4} bytes; at most {MAX_LINE_CHARS}",
        None,
    ]
    assert rows[0].fields == {"word": "a1", "note": "x\r\ny"}
    assert rows[6].fields == {"word": 'a"b', "note": 'c"d'}
    assert rows[9].fields == {"word": "last"}


def test_parquet_columns_of_all_types_are_text_or_errors(tmp_path: Path) -> None:
    import datetime
    import decimal

    columns = {
        "int": pa.array([1, None]),
        "big": pa.array([2**63, 1], pa.uint64()),
        "float": pa.array([1.5, float("nan")]),
        "half": pa.array([0.5, None], pa.float16()),
        "bool": pa.array([True, False]),
        "choice": pa.array(["a", "b"]).dictionary_encode(),
        "large": pa.array(["é", None], pa.large_string()),
        "view": pa.array(["v", None], pa.string_view()),
        "day": pa.array([datetime.date(2026, 1, 2), None]),
        "time": pa.array([datetime.datetime(2026, 1, 2, 3, 4, 5), None], pa.timestamp("ns")),
        "price": pa.array([decimal.Decimal("1.50"), None]),
        "null": pa.nulls(2),
    }
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table(columns), path)
    first, second = rows_of(path)
    assert first.error is None
    assert first.fields == {
        "int": "1",
        "big": str(2**63),
        "float": "1.5",
        "half": "0.5",
        "bool": "true",
        "choice": "a",
        "large": "é",
        "view": "v",
        "day": "2026-01-02",
        "time": "2026-01-02 03:04:05.000000000",
        "price": "1.50",
    }
    assert second.error == "row 2: the field 'float' holds nan, which is no number in JSON"


def test_parquet_cells_that_are_no_text_are_errors_of_their_rows(tmp_path: Path) -> None:
    bad = pa.array([b"ok", b"\xff", b"ok"]).view(pa.string())
    lists = pa.array([None, None, [1]])
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"word": bad, "list": lists}), path)
    assert errors_of(path) == [
        None,
        "row 2: the field 'word': not UTF-8 text: invalid start byte at byte 0",
        "row 3: the field 'list' holds a list; expected text, a number, true or false",
    ]
    mapped = BatchSettings(prompt=PROMPT.prompt, columns={"text": "word"})
    assert errors_of(path, mapped)[2] is None


def test_parquet_can_hold_requests_with_fields(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    rows = [{"task": "colour", "fields": {"word": "a1"}}, {"task": "shape", "fields": None}]
    pq.write_table(pa.Table.from_pylist(rows), path)
    first, second = rows_of(path, 2, NAMED)
    assert (first.ref, first.fields) == (PromptRef("colour", "production"), {"word": "a1"})
    assert second.error == "row 2: 'fields' must be an object, this is null"


def test_each_usable_row_gives_its_reference(tmp_path: Path) -> None:
    lines = [
        {"task": "colour", "word": "a"},
        {"task": "colour", "version": 3, "word": "a"},
        {"task": "colour", "version": "3", "word": "a"},
        {"task": "shape", "fields": {}},
        {"task": "lost", "word": []},
        {"word": "a"},
    ]
    path = write(tmp_path, "a.jsonl", b"".join(json.dumps(each).encode() + b"\n" for each in lines))
    refs: Counter[str] = Counter()
    scan(path, 2, BatchSettings(alias="staging"), lambda ref: refs.update([str(ref)]))
    assert refs == {"colour@staging": 1, "colour@3": 2, "shape@staging": 1}
    refs.clear()
    scan(path, 2, PROMPT, lambda ref: refs.update([str(ref)]))
    assert refs == {"colour@3": 1}


def test_files_of_a_folder_follow_each_other(tmp_path: Path) -> None:
    write(tmp_path, "b.csv", b"word\nb1\nb2\n")
    write(tmp_path, "a.jsonl", b'{"word": "a1"}\n{"word": "a2"}\n{"word": "a3"}\n')
    write(tmp_path, "c.tsv", b"word\tx\nc1\t1\n")
    write_parquet(tmp_path / "d.parquet", [{"word": "d1"}])
    found = scanned(tmp_path, 2)
    assert [file.name for file in found.files] == ["a.jsonl", "b.csv", "c.tsv", "d.parquet"]
    assert [file.format for file in found.files] == list(
        map(InputFormat, ("jsonl", "csv", "tsv", "parquet"))
    )
    assert [(s.file, s.first_row, s.num_rows, s.first_line) for s in found.shards] == [
        (0, 1, 2, 1),
        (0, 3, 1, 3),
        (1, 4, 2, 2),
        (2, 6, 1, 2),
        (3, 7, 1, 1),
    ]
    rows = rows_of(tmp_path, 2)
    assert [(row.row, row.file, row.line, row.fields["word"]) for row in rows] == [
        (1, "a.jsonl", 1, "a1"),
        (2, "a.jsonl", 2, "a2"),
        (3, "a.jsonl", 3, "a3"),
        (4, "b.csv", 2, "b1"),
        (5, "b.csv", 3, "b2"),
        (6, "c.tsv", 2, "c1"),
        (7, "d.parquet", 1, "d1"),
    ]


def test_a_description_survives_json(tmp_path: Path) -> None:
    write(tmp_path, "a.csv", b"word\nb1\nb2\n")
    found = scanned(tmp_path, 1)
    assert Input.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_a_shard_of_large_rows_ends_early(tmp_path: Path) -> None:
    row = b'{"word": "' + b"a" * 1_000_000 + b'"}\n'
    num_rows = MAX_SHARD_BYTES // len(row) + 3
    found = scanned(write(tmp_path, "a.jsonl", row * num_rows), 1024)
    assert [shard.num_rows for shard in found.shards] == [num_rows - 2, 2]


@pytest.mark.parametrize("shard_rows", [0, -1, (1 << 20) + 1])
def test_a_wrong_number_of_rows_is_refused(tmp_path: Path, shard_rows: int) -> None:
    path = write(tmp_path, "a.jsonl", b"{}\n")
    with pytest.raises(InvalidInput, match="rows a shard: expected 1 to 1048576"):
        scanned(path, shard_rows)


def test_a_file_that_is_gone_shorter_or_altered_is_refused_with_its_rows(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", b'{"word": "a1"}\n' * 5)
    found = scanned(path, 2)
    last = found.shards[2]
    path.write_bytes(b'{"word": "a1"}\n' * 4 + b'{"word": "b1"}\n')
    assert len(list(read_shard(found, found.shards[0], PROMPT))) == 2
    with pytest.raises(InvalidData, match=r"a\.jsonl: rows 5 to 5 \(from line 5\) are not what"):
        list(read_shard(found, last, PROMPT))
    path.write_bytes(b'{"word": "a1"}\n' * 4)
    with pytest.raises(InvalidData, match="rows 1 to 2"):
        next(read_shard(found, found.shards[0], PROMPT))
    path.unlink()
    with pytest.raises(InvalidData, match="no such file"):
        next(read_shard(found, found.shards[0], PROMPT))
