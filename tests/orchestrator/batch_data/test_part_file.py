"""Parts: whole or absent, the same bytes for the same rows, the first of a name stays."""

import json
import multiprocessing
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.batch_data.output_row import COLUMNS, OutputRow
from orchestrator.batch_data.parquet_output import SCHEMA
from orchestrator.batch_data.part_file import (
    OutputFormat,
    PartFile,
    describe_part,
    discard_part,
    has_part,
    write_part,
)
from orchestrator.domain.digest import digest_file
from orchestrator.domain.errors import IntegrityError, StoreUnavailable

BOTH = pytest.mark.parametrize("kind", list(OutputFormat))
ROWS = [
    OutputRow(
        row=1,
        file="a.jsonl",
        line=1,
        id=7,
        task="colour",
        version=3,
        digest="ab",
        answer="réd 😀",
        score=0.12345678,
        scores={"blue": 2 / 3, "red": -0.0000001},
        tokens=2,
        embedding=(1 / 3, -0.0),
        expected="red",
    ),
    OutputRow(row=2, line=2, id="x", error="line 2: not JSON"),
]


def test_a_row_is_written_in_the_order_of_the_schema() -> None:
    assert tuple(SCHEMA.names) == COLUMNS
    assert ROWS[0].to_line().decode() == (
        '{"row": 1, "file": "a.jsonl", "line": 1, "id": 7, "task": "colour", "version": 3, '
        '"digest": "ab", "answer": "réd 😀", "score": 0.123457, '
        '"scores": {"blue": 0.666667, "red": 0.0}, "tokens": 2, "embedding": [0.333333, 0.0], '
        '"expected": "red"}\n'
    )
    assert ROWS[1].to_line() == b'{"row": 2, "line": 2, "id": "x", "error": "line 2: not JSON"}\n'


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_number_that_is_none_is_not_written(number: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        OutputRow(row=1, line=1, score=number).to_line()


def test_a_parquet_part_holds_the_same_values(tmp_path: Path) -> None:
    part = write_part(str(tmp_path), 3, ROWS, OutputFormat.PARQUET)
    assert part.name == "part-00003.parquet"
    table = pq.read_table(tmp_path / part.name)
    assert table.schema.equals(SCHEMA)
    first, second = table.to_pylist()
    assert first["scores"] == [("blue", 0.666667), ("red", 0.0)]
    assert first["embedding"] == [pytest.approx(0.333333), 0.0]
    assert (first["id"], first["score"], first["answer"]) == ("7", 0.123457, "réd 😀")
    wanted = ROWS[1].to_json()
    assert {key: value for key, value in second.items() if value is not None} == wanted


@BOTH
def test_a_part_is_described_as_it_lies_there(tmp_path: Path, kind: OutputFormat) -> None:
    part = write_part(f"{tmp_path}/new/folder", 0, ROWS, kind)
    path = tmp_path / "new/folder" / part.name
    assert part == PartFile(f"part-00000.{kind}", digest_file(path), path.stat().st_size, 2, 1)
    assert describe_part(str(path.parent), part.name) == part
    assert [each.name for each in path.parent.iterdir()] == [part.name]


@BOTH
def test_equal_rows_give_equal_bytes(tmp_path: Path, kind: OutputFormat) -> None:
    parts = [write_part(f"{tmp_path}/{name}", 0, iter(ROWS), kind) for name in "ab"]
    assert parts[0] == parts[1]


@BOTH
def test_the_first_part_of_a_name_stays(tmp_path: Path, kind: OutputFormat) -> None:
    folder = str(tmp_path)
    part = write_part(folder, 0, ROWS, kind)
    stamp = (tmp_path / part.name).stat().st_mtime_ns
    assert write_part(folder, 0, ROWS, kind) == part
    other = [ROWS[0], OutputRow(row=2, line=2, answer="late")]
    assert write_part(folder, 0, other, kind) == part
    assert (tmp_path / part.name).stat().st_mtime_ns == stamp
    assert [each.name for each in tmp_path.iterdir()] == [part.name]


@BOTH
def test_what_is_no_part_of_the_run_is_not_replaced(tmp_path: Path, kind: OutputFormat) -> None:
    folder, name = str(tmp_path), f"part-00000.{kind}"
    for foreign in (b"hello\n", b"", b'{"row": 1}'):
        (tmp_path / name).write_bytes(foreign)
        with pytest.raises(IntegrityError, match=name):
            write_part(folder, 0, ROWS, kind)
        assert (tmp_path / name).read_bytes() == foreign
    discard_part(folder, name)
    discard_part(folder, name)
    write_part(folder, 0, ROWS[:1], kind)
    with pytest.raises(IntegrityError, match="not this run's part of 2 rows"):
        write_part(folder, 0, ROWS, kind)


@BOTH
def test_a_missing_or_altered_part_is_seen(tmp_path: Path, kind: OutputFormat) -> None:
    folder = str(tmp_path)
    part = write_part(folder, 0, ROWS, kind)
    assert has_part(folder, part)
    path = tmp_path / part.name
    data = bytearray(path.read_bytes())
    data[30] ^= 1
    path.write_bytes(data)
    assert not has_part(folder, part)
    discard_part(folder, part.name)
    assert not has_part(folder, part)
    assert describe_part(folder, part.name) is None


def test_a_disk_that_takes_nothing_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreUnavailable, match=f"cannot write {tmp_path}/file/part-00000.jsonl"):
        write_part(f"{tmp_path}/file", 0, ROWS, OutputFormat.JSONL)


def race(folder: str, worker: int, gate: "multiprocessing.synchronize.Barrier") -> None:
    for index in range(40):
        gate.wait()
        rows = [OutputRow(row=index, line=1, answer=f"of {worker}")]
        part = write_part(folder, index, rows, OutputFormat.JSONL)
        assert has_part(folder, part)


def test_writers_at_once_agree_on_the_part_that_stays(tmp_path: Path) -> None:
    """Their rows differ, as two machines' might: all are told the digest of the file there is."""
    context = multiprocessing.get_context("spawn")
    gate = context.Barrier(3)
    workers = [context.Process(target=race, args=(str(tmp_path), n, gate)) for n in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"part-{index:05d}.jsonl" for index in range(40)
    ]


def test_a_disk_without_links_is_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno
    import os

    def no_link(source: object, target: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", no_link)
    part = write_part(str(tmp_path), 0, ROWS, OutputFormat.JSONL)
    assert write_part(str(tmp_path), 0, ROWS[:1] * 2, OutputFormat.JSONL) == part
    assert [each.name for each in tmp_path.iterdir()] == [part.name]


texts = st.text(st.characters(codec="utf-8"), max_size=5)
numbers = st.floats(-1e6, 1e6)
output_rows = st.builds(
    OutputRow,
    row=st.integers(1, 2**62),
    line=st.integers(1, 2**62),
    id=st.none() | st.integers(-(2**63), 2**63 - 1) | texts,
    answer=st.none() | texts,
    score=st.none() | numbers,
    scores=st.none() | st.dictionaries(texts, numbers, max_size=3),
    embedding=st.none() | st.lists(numbers, max_size=3),
    error=st.none() | texts,
)


@BOTH
@given(rows=st.lists(output_rows, max_size=4))
@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_rows_are_written_and_counted(
    tmp_path: Path, kind: OutputFormat, rows: list[OutputRow]
) -> None:
    discard_part(str(tmp_path), f"part-00000.{kind}")
    part = write_part(str(tmp_path), 0, rows, kind)
    assert describe_part(str(tmp_path), part.name) == part
    assert part.num_errors == sum(row.error is not None for row in rows)
    if kind is OutputFormat.JSONL:
        lines = (tmp_path / part.name).read_bytes().split(b"\n")[:-1]
        assert [json.loads(line) for line in lines] == [row.to_json() for row in rows]
