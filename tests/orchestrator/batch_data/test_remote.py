"""Input and output behind URLs: fsspec's memory, and S3 as moto's server speaks it."""

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.batch_data.join_parts import join_parts, remove_parts
from orchestrator.batch_data.location import open_fs
from orchestrator.batch_data.manifest import write_manifest
from orchestrator.batch_data.output_file import list_names, read_output
from orchestrator.batch_data.output_row import OutputRow
from orchestrator.batch_data.output_target import OutputTarget, check_target, open_target
from orchestrator.batch_data.part_file import write_part
from orchestrator.batch_data.shard_reader import read_shard
from orchestrator.domain.errors import IntegrityError, InvalidData, InvalidInput, StoreUnavailable
from tests.orchestrator.batch_data.tables import (
    PROMPT,
    rows_of,
    scanned,
    write_csv,
    write_jsonl,
    write_parquet,
)
from tests.s3_server import s3_server

TABLE = [{"word": f"w{number}"} for number in range(7)]


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with s3_server() as url:
        yield url


@pytest.fixture(params=["memory", "s3"])
def root(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A fresh folder behind a URL."""
    name = f"bucket-{uuid.uuid4().hex}"
    if request.param == "memory":
        return f"memory://{name}"
    import s3fs

    for key, value in {
        "AWS_ENDPOINT_URL": request.getfixturevalue("endpoint"),
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
    }.items():
        monkeypatch.setenv(key, value)
    s3fs.S3FileSystem.clear_instance_cache()
    open_fs("s3://x")[0].mkdir(name)
    return f"s3://{name}"


def put(root: str, name: str, path: Path) -> str:
    fs, place = open_fs(f"{root}/{name}")
    fs.pipe(place, path.read_bytes())
    return f"{root}/{name}"


def test_shards_are_read_from_a_folder_behind_a_url(root: str, tmp_path: Path) -> None:
    put(root, "in/a.jsonl", write_jsonl(tmp_path / "a.jsonl", TABLE))
    put(root, "in/b.csv", write_csv(tmp_path / "b.csv", TABLE))
    put(root, "in/c.parquet", write_parquet(tmp_path / "c.parquet", TABLE))
    put(root, "in/notes.txt", tmp_path / "a.jsonl")
    for source in (f"{root}/in", f"{root}/in/*"):
        rows = rows_of(source, 3)
        assert [row.fields for row in rows] == TABLE * 3
        assert [row.file for row in rows[::7]] == ["a.jsonl", "b.csv", "c.parquet"]


def test_a_changed_or_missing_object_is_refused(root: str, tmp_path: Path) -> None:
    url = put(root, "a.jsonl", write_jsonl(tmp_path / "a.jsonl", TABLE))
    found = scanned(url)
    put(root, "a.jsonl", write_jsonl(tmp_path / "a.jsonl", [{"word": "other"}, *TABLE]))
    with pytest.raises(InvalidData, match="rows 1 to 3"):
        next(read_shard(found, found.shards[0], PROMPT))
    with pytest.raises(InvalidData, match="no such file"):
        scanned(f"{root}/nothing.jsonl")


@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet", "out"])
def test_output_is_written_and_joined_behind_a_url(root: str, tmp_path: Path, name: str) -> None:
    source = scanned(put(root, "in/a.jsonl", write_jsonl(tmp_path / "a.jsonl", TABLE)))
    target = OutputTarget.parse(f"{root}/deep/{name}")
    check_target(target, source)
    folder = open_target(target, "r1")
    assert open_target(target, "r1") == folder
    rows = [OutputRow(row=row, line=row, answer="a") for row in range(1, 8)]
    parts = [write_part(folder, at, rows[3 * at : 3 * at + 3], target.format) for at in range(3)]
    late = [OutputRow(row=7, line=7, answer="b")]
    assert write_part(folder, 2, late, target.format) == parts[2]
    if target.is_file:
        joined = join_parts(folder, parts, target)
        assert (joined.num_rows, joined.num_bytes) == (7, len(b"".join(read_output(target.url))))
    write_manifest(target, {"run": "r1"})
    remove_parts(folder, parts, target)
    shown = [name, f"{name}.manifest.json"] if target.is_file else [name]
    assert list_names(f"{root}/deep") == shown
    if not target.is_file:
        assert list_names(folder) == ["_manifest.json", "_run", *(part.name for part in parts)]
        with pytest.raises(InvalidInput, match="the folder holds '_manifest.json' and 4 more"):
            check_target(target, source)


def test_an_altered_object_is_not_joined(root: str) -> None:
    target = OutputTarget.parse(f"{root}/out.jsonl")
    folder = open_target(target, "r1")
    part = write_part(folder, 0, [OutputRow(row=1, line=1)], target.format)
    fs, path = open_fs(f"{folder}/{part.name}")
    fs.pipe(path, b"{}\n")
    with pytest.raises(IntegrityError, match="was altered"):
        join_parts(folder, [part], target)
    assert "out.jsonl" not in list_names(root)


def test_a_bucket_that_is_not_there_is_named(root: str) -> None:
    if root.startswith("memory"):
        return
    with pytest.raises(StoreUnavailable, match="s3://no-such-bucket"):
        open_target(OutputTarget.parse("s3://no-such-bucket/out"), "r1")
