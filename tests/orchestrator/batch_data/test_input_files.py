"""Which files an input is."""

import os
from pathlib import Path

import pytest

from orchestrator.batch_data.input_files import find_files, would_find
from orchestrator.domain.errors import InvalidData, InvalidInput


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def names(source: Path | str) -> list[str]:
    return [file.name for file in find_files(source)]


def test_a_folder_gives_its_own_files_of_known_endings(tmp_path: Path) -> None:
    touch(tmp_path, "b.csv", "a.JSONL", "c.parquet", "d.tsv", "e.ndjson", "notes.txt", ".x.csv")
    touch(tmp_path, "_part.csv", "deep/z.csv", "folder.csv/inner.txt")
    assert names(tmp_path) == ["a.JSONL", "b.csv", "c.parquet", "d.tsv", "e.ndjson"]
    assert names(f"file://{tmp_path}") == names(tmp_path)


def test_a_pattern_gives_what_it_finds_named_below_what_they_share(tmp_path: Path) -> None:
    touch(tmp_path, "x/1/a.csv", "x/2/a.csv", "x/2/b.txt", "y/a.csv")
    assert names(f"{tmp_path}/x/*/*") == ["1/a.csv", "2/a.csv"]
    assert [file.url for file in find_files(f"{tmp_path}/?/a.csv")] == [f"{tmp_path}/y/a.csv"]
    assert names(f"{tmp_path}/**/a.csv") == ["x/1/a.csv", "x/2/a.csv", "y/a.csv"]


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tmp_path: Path) -> None:
    touch(tmp_path, "a[1].csv", "a1.csv")
    assert names(tmp_path / "a[1].csv") == ["a[1].csv"]


def test_a_relative_path_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a.csv")
    monkeypatch.chdir(tmp_path)
    assert [file.url for file in find_files("a.csv")] == [f"{tmp_path}/a.csv"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nothing.csv", "no such file"),
        ("empty", "no input file is there"),
        ("*.csv", "no input file is there"),
        ("a\0b.csv", "cannot be read|no such file"),
        ("x" * 300 + ".csv", "no such file|cannot be read"),
    ],
)
def test_what_is_not_there_is_refused(tmp_path: Path, source: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidData, match=message):
        find_files(f"{tmp_path}/{source}")


def test_a_pipe_and_a_device_are_no_files(tmp_path: Path) -> None:
    from tests.orchestrator.batch_data.tables import scanned

    os.mkfifo(tmp_path / "a.csv")
    (tmp_path / "b.jsonl").symlink_to("/dev/zero")
    for name in ("a.csv", "b.jsonl"):
        with pytest.raises(InvalidData, match="not a file"):
            scanned(tmp_path / name)


def test_an_unknown_protocol_is_refused() -> None:
    with pytest.raises(InvalidInput, match="nosuch://x cannot be opened"):
        find_files("nosuch://x")


def test_a_pattern_knows_what_it_would_find(tmp_path: Path) -> None:
    assert would_find(f"{tmp_path}/*.csv", f"{tmp_path}/out.csv")
    assert not would_find(f"{tmp_path}/*.csv", f"{tmp_path}/deep/out.csv")
    assert not would_find(f"{tmp_path}/a.csv", f"{tmp_path}/a.csv")
