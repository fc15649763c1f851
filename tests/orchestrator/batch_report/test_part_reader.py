"""Output files are read as they were written, or refused with file and row."""

import tracemalloc
from contextlib import suppress
from pathlib import Path

import fsspec
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.batch_report.answer_row import AnswerRow
from orchestrator.batch_report.part_reader import OutputFile, read_rows
from orchestrator.domain.digest import digest_file
from orchestrator.domain.errors import IntegrityError
from tests.orchestrator.batch_report.conftest import make_rows, parse, write_jsonl


def test_jsonl_parts_are_read_in_order(tmp_path: Path) -> None:
    rows = make_rows(30)
    first = write_jsonl(tmp_path / "part-00000.jsonl", rows[:20])
    second = write_jsonl(tmp_path / "part-00001.jsonl", rows[20:])
    files = [OutputFile(str(path), digest_file(path)) for path in (first, second)]
    assert list(read_rows(files)) == parse(rows)


def write_parquet(path: Path, rows: list[dict[str, object]]) -> Path:
    kinds = {
        "row": pyarrow.int64(),
        "task": pyarrow.string(),
        "version": pyarrow.int64(),
        "answer": pyarrow.string(),
        "score": pyarrow.float64(),
        "scores": pyarrow.map_(pyarrow.string(), pyarrow.float64()),
        "tokens": pyarrow.int64(),
        "embedding": pyarrow.list_(pyarrow.float32()),
        "expected": pyarrow.string(),
        "error": pyarrow.string(),
    }
    columns = {name: [row.get(name) for row in rows] for name in kinds}
    columns["scores"] = [list(v.items()) if v else None for v in columns["scores"]]  # type: ignore[attr-defined]
    table = pyarrow.table(columns, schema=pyarrow.schema(list(kinds.items())))
    pyarrow.parquet.write_table(table, path)
    return path


def test_parquet_gives_the_same_rows(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", make_rows(30))
    found = list(read_rows([OutputFile(str(path), digest_file(path))]))
    assert found == parse(make_rows(30))


def test_any_url_will_do(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", make_rows(3))
    with fsspec.open("memory://report-test/a.jsonl", "wb") as file:
        file.write(path.read_bytes())
    url = "memory://report-test/a.jsonl"
    assert list(read_rows([OutputFile(url, digest_file(path))])) == parse(make_rows(3))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", "a.jsonl:2: not JSON"),
        (b"\xff\xfe", "a.jsonl:2: not JSON"),
        (b"[" * 100_000, "a.jsonl:2: not JSON"),
        (b"[]", "an output row is an object, this is list"),
        (b"{}", "it has no 'row'"),
        (b'{"row": true}', "'row' is bool"),
        (b'{"row": 2, "answer": 3}', "'answer' is int"),
        (b'{"row": 2, "scores": {"a": "b"}}', "'scores' holds what is no number"),
    ],
)
def test_what_is_no_row_is_refused_with_its_place(
    tmp_path: Path, line: bytes, message: str
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"row": 1}\n' + line + b"\n")
    with pytest.raises(IntegrityError) as refused:
        list(read_rows([OutputFile(str(path))]))
    assert message in str(refused.value)
    assert "tutti batch resume" in str(refused.value)


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_an_altered_file_is_refused(tmp_path: Path, name: str) -> None:
    write = write_jsonl if name.endswith("jsonl") else write_parquet
    path = write(tmp_path / name, make_rows(4))
    digest = digest_file(path)
    write(path, make_rows(3))
    with pytest.raises(IntegrityError, match="its sha256 is"):
        list(read_rows([OutputFile(str(path), digest)]))


def test_a_file_that_is_away_or_no_parquet_is_named(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match=r"nowhere\.jsonl: cannot be read"):
        list(read_rows([OutputFile(str(tmp_path / "nowhere.jsonl"))]))
    broken = tmp_path / "b.parquet"
    broken.write_bytes(b"PAR1 no")
    with pytest.raises(IntegrityError, match=r"b\.parquet: not Parquet"):
        list(read_rows([OutputFile(str(broken))]))


def test_memory_does_not_grow_with_a_file(tmp_path: Path) -> None:
    def peak(num_rows: int) -> int:
        path = write_jsonl(tmp_path / f"{num_rows}.jsonl", make_rows(num_rows))
        tracemalloc.start()
        assert sum(1 for _ in read_rows([OutputFile(str(path), digest_file(path))])) == num_rows
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    peak(100)  # what the first reading imports
    assert peak(20_000) < 1.2 * peak(1_000) + 100_000


@pytest.mark.parametrize("name", ["fuzz.jsonl", "fuzz.parquet"])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_no_bytes_raise_anything_else(tmp_path: Path, name: str, data: st.DataObject) -> None:
    path = tmp_path / name
    write = write_jsonl if name.endswith("jsonl") else write_parquet
    content = bytearray(write(path, make_rows(5)).read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place : place + data.draw(st.integers(1, 3))] = data.draw(st.binary(max_size=3))
        content = content or bytearray(b"x")
    path.write_bytes(content)
    with suppress(IntegrityError):
        list(read_rows([OutputFile(str(path))]))


def test_halves_of_characters_do_not_break_a_row() -> None:
    assert AnswerRow.parse({"row": 1, "task": "\ud800"}, "x").task == "\ud800"
