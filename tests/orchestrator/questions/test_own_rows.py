"""Rows that name tasks go to their own task; all others are everybody's."""

import json
from pathlib import Path
from typing import Any

import fsspec
import pytest

from orchestrator.batch_data.batch_row import BatchRow
from orchestrator.batch_data.scan import scan
from orchestrator.batch_data.shard_reader import read_shard
from orchestrator.domain.batch import BatchMode, BatchSettings
from orchestrator.domain.digest import digest_bytes, digest_file
from orchestrator.domain.errors import InvalidInput
from orchestrator.domain.prompt_version import PromptRef
from orchestrator.questions.own_rows import split_rows

PLAIN = BatchSettings()


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def read(source: str, settings: BatchSettings) -> list[BatchRow]:
    pinned = BatchSettings(
        prompt=PromptRef("any", 1), columns=settings.columns, answers_field=settings.answers_field
    )
    found = scan(source, 1024, pinned, lambda _: None)
    return [row for shard in found.shards for row in read_shard(found, shard, pinned)]


@pytest.fixture
def folder(tmp_path: Path) -> str:
    return str(tmp_path / "split")


def test_rows_without_tasks_are_everybodys(tmp_path: Path, folder: str) -> None:
    data = write(tmp_path / "a.jsonl", [{"word": "x", "colour": "red"}])
    rows = split_rows(data, ["colour", "word"], PLAIN, folder)
    assert (rows.is_by_task, rows.notes) == (False, ())
    assert rows.of("word", PLAIN) == (data, PLAIN)
    assert rows.digest == digest_file(Path(data))
    assert not Path(folder).exists()


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_a_table_without_the_column_task_is_everybodys(
    tmp_path: Path, folder: str, name: str
) -> None:
    comma = "," if name == "a.csv" else "\t"
    path = tmp_path / name
    path.write_text(f"word{comma}colour\nx{comma}red\n")
    assert not split_rows(str(path), ["colour"], PLAIN, folder).is_by_task


def test_one_tasks_own_data_are_read_where_they_lie(tmp_path: Path, folder: str) -> None:
    data = write(tmp_path / "a.jsonl", [{"task": "colour", "fields": {"word": "x"}}] * 3)
    rows = split_rows(data, ["colour"], PLAIN, folder)
    assert rows.is_by_task
    assert rows.of("colour", PLAIN) == (data, PLAIN)


def test_mixed_rows_are_written_out_by_task(tmp_path: Path, folder: str) -> None:
    mixed = [
        {"task": "colour", "id": 7, "fields": {"word": "x\u2028y", "colour": "red"}},
        {"task": "word", "fields": {"word": "a"}},
        {"task": "other", "fields": {"word": "b"}},
        {"task": "colour", "version": "staging", "word": "z", "colour": None},
        {"word": "nobody's"},
    ]
    rows = split_rows(write(tmp_path / "a.jsonl", mixed), ["word", "colour"], PLAIN, folder)
    own = read(*rows.of("colour", PLAIN))
    assert [(row.id, dict(row.fields)) for row in own] == [
        (7, {"word": "x\u2028y", "colour": "red"}),
        (None, {"word": "z"}),
    ]
    assert [dict(row.fields) for row in read(*rows.of("word", PLAIN))] == [{"word": "a"}]
    assert rows.notes == (
        "1 rows name no task, or cannot be read: left out",
        "1 rows are of other tasks: left out",
    )
    assert sorted(path.name for path in Path(folder).iterdir()) == ["rows-0.jsonl", "rows-1.jsonl"]


def test_mapped_columns_and_given_answers_survive_the_split(tmp_path: Path, folder: str) -> None:
    settings = BatchSettings(
        mode=BatchMode.SCORE, columns={"task": "t", "word": "w"}, answers_field="options"
    )
    mixed = [
        {"t": "colour", "w": "x", "options": ["red", "blue"]},
        {"t": "word", "w": "y", "options": ["a"]},
    ]
    rows = split_rows(write(tmp_path / "a.jsonl", mixed), ["colour"], settings, folder)
    source, own = rows.of("colour", settings)
    assert own.columns == {}
    (row,) = read(source, own)
    assert (dict(row.fields), row.answers) == ({"word": "x"}, ("red", "blue"))


def test_a_task_that_the_data_do_not_know_is_refused(tmp_path: Path, folder: str) -> None:
    data = write(tmp_path / "a.jsonl", [{"task": "word", "fields": {"word": "a"}}])
    with pytest.raises(InvalidInput, match="its rows name tasks, and none of them 'colour'"):
        split_rows(data, ["colour"], PLAIN, folder)
    assert not Path(folder).exists()


def test_several_files_have_one_digest_of_theirs(tmp_path: Path, folder: str) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        write(tmp_path / "in" / f"{name}.jsonl", [{"word": name}])
    rows = split_rows(str(tmp_path / "in"), ["colour"], PLAIN, folder)
    lines = "".join(f"{digest}\n" for digest in rows.digests)
    assert (len(rows.digests), rows.digest) == (2, digest_bytes(lines.encode()))


def test_data_and_split_may_lie_on_a_server() -> None:
    mixed = [{"task": task, "fields": {"word": task}} for task in ("colour", "word")]
    with fsspec.open("memory://own-rows/a.jsonl", "wt") as file:
        file.write("".join(json.dumps(row) + "\n" for row in mixed))
    rows = split_rows("memory://own-rows/a.jsonl", ["word"], PLAIN, "memory://own-rows/split")
    assert [dict(row.fields) for row in read(*rows.of("word", PLAIN))] == [{"word": "word"}]
