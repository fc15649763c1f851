"""One file out of parts, and the manifest after it."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from orchestrator.batch_data import parquet_output
from orchestrator.batch_data.join_parts import join_parts, remove_parts
from orchestrator.batch_data.manifest import describe_run, write_manifest
from orchestrator.batch_data.output_row import OutputRow
from orchestrator.batch_data.output_target import OutputTarget, open_target
from orchestrator.batch_data.part_file import OutputFormat, PartFile, write_part
from orchestrator.domain.batch import BatchSettings
from orchestrator.domain.digest import digest_file
from orchestrator.domain.errors import IntegrityError
from tests.orchestrator.batch_data.tables import scanned

BOTH = pytest.mark.parametrize("kind", list(OutputFormat))


def write_run(output: Path | str, num_parts: int = 3) -> tuple[OutputTarget, str, list[PartFile]]:
    target = OutputTarget.parse(output)
    folder = open_target(target, "r1")
    parts = [
        write_part(
            folder,
            index,
            [
                OutputRow(row=2 * index + 1, line=1, answer=f"a{index}"),
                OutputRow(row=2 * index + 2, line=2, error="no"),
            ],
            target.format,
        )
        for index in range(num_parts)
    ]
    return target, folder, parts


def row_numbers(path: Path) -> list[int]:
    if path.suffix == ".parquet":
        return pq.read_table(path).column("row").to_pylist()  # type: ignore[no-any-return]
    return [json.loads(line)["row"] for line in path.read_bytes().splitlines()]


@BOTH
def test_parts_become_one_file_and_go(tmp_path: Path, kind: OutputFormat) -> None:
    path = tmp_path / f"x.{kind}"
    path.write_bytes(b"old")
    target, folder, parts = write_run(path)
    joined = join_parts(folder, parts, target)
    assert joined == PartFile(path.name, digest_file(path), path.stat().st_size, 6, 3)
    assert row_numbers(path) == [1, 2, 3, 4, 5, 6]
    assert join_parts(folder, parts, target) == joined
    remove_parts(folder, parts, target)
    remove_parts(folder, parts, target)
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_jsonl_is_the_parts_bytes_after_each_other(tmp_path: Path) -> None:
    target, folder, parts = write_run(tmp_path / "x.jsonl")
    join_parts(folder, parts, target)
    pieces = [(Path(folder) / part.name).read_bytes() for part in parts]
    assert (tmp_path / "x.jsonl").read_bytes() == b"".join(pieces)


@pytest.mark.parametrize("group_rows", [1, 3, 1000])
def test_parquet_parts_are_gathered_into_row_groups(
    tmp_path: Path, group_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet_output, "_GROUP_ROWS", group_rows)
    target, folder, parts = write_run(tmp_path / "x.parquet", 4)
    join_parts(folder, parts, target)
    file = pq.ParquetFile(tmp_path / "x.parquet")
    assert file.num_row_groups == {1: 4, 3: 2, 1000: 1}[group_rows]
    assert row_numbers(tmp_path / "x.parquet") == list(range(1, 9))


@BOTH
def test_an_altered_or_missing_part_leaves_the_output_alone(
    tmp_path: Path, kind: OutputFormat
) -> None:
    path = tmp_path / f"x.{kind}"
    path.write_bytes(b"old")
    target, folder, parts = write_run(path)
    last = Path(folder) / parts[2].name
    data = last.read_bytes()
    last.write_bytes(
        data.replace(b"a2", b"zz") if kind == "jsonl" else data[:-9] + b"x" + data[-8:]
    )
    with pytest.raises(IntegrityError, match=f"{parts[2].name}: the part was altered"):
        join_parts(folder, parts, target)
    last.unlink()
    with pytest.raises(IntegrityError, match=f"{parts[2].name}: the part is missing"):
        join_parts(folder, parts, target)
    assert path.read_bytes() == b"old"
    assert sorted(each.name for each in tmp_path.iterdir()) == [Path(folder).name, path.name]


def test_what_is_not_the_runs_stays_where_its_parts_were(tmp_path: Path) -> None:
    target, folder, parts = write_run(tmp_path / "x.jsonl")
    (Path(folder) / "mine.txt").write_bytes(b"mine")
    remove_parts(folder, parts, target)
    assert [path.name for path in Path(folder).iterdir()] == ["mine.txt"]


def test_a_folder_keeps_its_parts_and_loses_what_killed_writers_left(tmp_path: Path) -> None:
    target, folder, parts = write_run(tmp_path / "out")
    (tmp_path / "out/.part-00002.jsonl.0.part").write_bytes(b"half")
    remove_parts(folder, parts, target)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "_run",
        *(part.name for part in parts),
    ]


def test_the_manifest_says_what_was_read_and_written(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_bytes(b"task,word\ncolour,a\ncolour,b\n")
    source = scanned(tmp_path / "in.csv", 1, BatchSettings(columns={"text": "word"}))
    target, _, parts = write_run(tmp_path / "out", 1)
    settings = BatchSettings(columns={"text": "word"})
    manifest = describe_run(
        "r1", source, settings, [], {"lost@production": "no such task"}, target, parts, 1.23456
    )
    write_manifest(target, manifest)
    found = json.loads((tmp_path / "out/_manifest.json").read_bytes())
    assert found == {
        "run": "r1",
        "input": {
            "source": f"{tmp_path}/in.csv",
            "rows": 2,
            "shard_rows": 1,
            "files": [
                {
                    "url": f"{tmp_path}/in.csv",
                    "format": "csv",
                    "sha256": digest_file(tmp_path / "in.csv"),
                    "bytes": 28,
                    "rows": 2,
                }
            ],
        },
        "settings": settings.to_json()
        | {"decoding": settings.to_json()["decoding"] | {"stop_strings": []}},
        "versions": {},
        "unresolved": {"lost@production": "no such task"},
        "output": {
            "url": f"{tmp_path}/out",
            "format": "jsonl",
            "files": [
                {
                    "name": "part-00000.jsonl",
                    "sha256": parts[0].sha256,
                    "bytes": parts[0].num_bytes,
                    "rows": 2,
                    "errors": 1,
                }
            ],
        },
        "rows": 2,
        "errors": 1,
        "seconds": 1.235,
    }
