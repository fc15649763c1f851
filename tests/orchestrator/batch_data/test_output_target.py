"""Where output may go."""

import os
from pathlib import Path

import pytest

from orchestrator.batch_data.output_row import OutputRow
from orchestrator.batch_data.output_target import OutputTarget, check_target, open_target
from orchestrator.batch_data.part_file import OutputFormat, write_part
from orchestrator.domain.errors import InvalidInput
from tests.orchestrator.batch_data.tables import scanned


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a.jsonl", "b.jsonl"):
        (folder / name).write_bytes(b'{"word": "a1"}\n')
    return folder


def check(output: Path | str, source: Path | str, output_format: str | None = None) -> OutputTarget:
    target = OutputTarget.parse(output, output_format)
    check_target(target, scanned(source))
    return target


def test_the_name_says_whether_it_is_a_file_and_its_format(tmp_path: Path) -> None:
    cases = {"x.jsonl": ("jsonl", True), "x.PARQUET": ("parquet", True), "x": ("jsonl", False)}
    for name, (kind, is_file) in cases.items():
        target = OutputTarget.parse(tmp_path / name)
        assert (target.format, target.is_file) == (kind, is_file)
        assert target.url == f"{tmp_path}/{name}"
    assert OutputTarget.parse("x", "parquet").format is OutputFormat.PARQUET
    assert OutputTarget.parse("s3://b/x/").url == "s3://b/x"


def test_parts_and_manifest_have_their_places(tmp_path: Path) -> None:
    file, folder = OutputTarget.parse(tmp_path / "x.jsonl"), OutputTarget.parse("memory://a/x")
    assert file.parts_folder("r1") == f"{tmp_path}/.x.jsonl.parts-r1"
    assert file.manifest == f"{tmp_path}/x.jsonl.manifest.json"
    assert (folder.parts_folder("r1"), folder.manifest) == (
        "memory://a/x",
        "memory://a/x/_manifest.json",
    )


@pytest.mark.parametrize(
    ("output", "kind", "message"),
    [
        ("x.jsonl", "parquet", "its name says jsonl, the format given is parquet"),
        ("x", "csv", "'csv' is no format of output; there are jsonl and parquet"),
        ("zip://x::y.zip", None, "cannot be the output"),
        ("/", None, "cannot be the output"),
    ],
)
def test_a_wrong_target_is_refused(output: str, kind: str | None, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        OutputTarget.parse(output, kind)


def test_new_places_and_files_to_replace_are_well(tmp_path: Path, source: Path) -> None:
    (tmp_path / "old.jsonl").write_bytes(b"old")
    (tmp_path / "empty").mkdir()
    for name in ("new/deep/x.jsonl", "old.jsonl", "empty", "new/folder"):
        check(tmp_path / name, source)
    assert (tmp_path / "old.jsonl").read_bytes() == b"old"


def test_the_input_is_no_output(tmp_path: Path, source: Path) -> None:
    os.link(source / "a.jsonl", tmp_path / "hard.jsonl")
    (tmp_path / "soft").symlink_to(source)
    for output in (source / "a.jsonl", source, tmp_path / "hard.jsonl", tmp_path / "soft"):
        with pytest.raises(InvalidInput, match="it is the input, or would become part of it"):
            check(output, source)
    for output, read in (
        (source / "new.jsonl", source),
        (tmp_path / "soft/new.jsonl", source),
        (source / "new.jsonl", f"{source}/*.jsonl"),
    ):
        with pytest.raises(InvalidInput, match="would become part of it"):
            check(output, read)
    check(source / "new.jsonl", source / "a.jsonl")
    check(source / "answers", source)


def test_a_folder_that_holds_something_is_refused(tmp_path: Path, source: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    for name in ("a.txt", "b.txt"):
        (folder / name).write_bytes(b"mine")
    with pytest.raises(InvalidInput, match=r"the folder holds 'a\.txt' and 1 more"):
        check(folder, source)
    with pytest.raises(InvalidInput, match="it holds files that are not of the run r1"):
        open_target(OutputTarget.parse(folder), "r1")
    assert sorted(path.name for path in folder.iterdir()) == ["a.txt", "b.txt"]


def test_special_files_and_files_for_folders_are_refused(tmp_path: Path, source: Path) -> None:
    os.mkfifo(tmp_path / "x.jsonl")
    (tmp_path / "y.parquet").mkdir()
    (tmp_path / "z").write_bytes(b"")
    (tmp_path / "loop.jsonl").symlink_to(tmp_path / "loop.jsonl")
    for name, message in {
        "x.jsonl": "it is not a file",
        "y.parquet": "it is not a file",
        "z": "it is not a folder",
        "z/x.jsonl": "Not a directory|not a directory|exists",
        "loop.jsonl": "symbolic links",
    }.items():
        with pytest.raises(InvalidInput, match=f"{name}: cannot be the output: .*({message})"):
            check(tmp_path / name, source)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_read_only_is_refused(tmp_path: Path, source: Path) -> None:
    (tmp_path / "out").mkdir(mode=0o500)
    with pytest.raises(InvalidInput, match="its folder is read-only"):
        check(tmp_path / "out" / "x.jsonl", source)


@pytest.mark.parametrize("name", ["out", "x.jsonl"])
def test_a_target_belongs_to_its_run(tmp_path: Path, source: Path, name: str) -> None:
    target = check(tmp_path / name, source)
    folder = open_target(target, "r1")
    write_part(folder, 0, [OutputRow(row=1, line=1)], OutputFormat.JSONL)
    (Path(folder) / ".part-00001.jsonl.0.part").write_bytes(b"half")
    assert open_target(target, "r1") == folder
    if target.is_file:
        assert open_target(target, "r2") != folder
    else:
        with pytest.raises(InvalidInput, match="not of the run r2"):
            open_target(target, "r2")
