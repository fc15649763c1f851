from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.domain.digest import digest_bytes
from orchestrator.domain.errors import InvalidData
from orchestrator.inference.chunk import MAX_CHUNK_LINES, read_lines, scan


def write(folder: Path, data: bytes) -> Path:
    path = folder / "x.jsonl"
    path.write_bytes(data)
    return path


def lines_of(path: Path, num_workers: int) -> list[bytes]:
    source = scan(path)
    return [line for chunk in source.chunks(num_workers) for line in read_lines(path, chunk)]


def expected(data: bytes) -> list[bytes]:
    return data.removesuffix(b"\n").split(b"\n")


@given(st.binary(min_size=1, max_size=60) | st.text("a\n\r{", min_size=1).map(str.encode))
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_bytes_split_back_to_their_lines(tmp_path: Path, data: bytes) -> None:
    path = write(tmp_path, data)
    for num_workers in (1, 3):
        assert lines_of(path, num_workers) == expected(data)


@pytest.mark.parametrize("data", [b"a\nb\nc\n", b"a\nb\nc", b"\n", b"\n\n\n", b"a", b"a\r\nb\r\n"])
def test_line_endings_are_kept_apart_from_lines(tmp_path: Path, data: bytes) -> None:
    path = write(tmp_path, data)
    assert lines_of(path, 2) == expected(data)
    assert scan(path).num_lines == len(expected(data))


def test_a_scan_knows_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, b"ab\ncd\n\nx")
    source = scan(path)
    assert source.path == path
    assert source.digest == digest_bytes(b"ab\ncd\n\nx")
    assert source.line_ends == (3, 6, 7, 8)


@given(st.integers(1, 2000), st.integers(1, 8))
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_chunks_cover_all_lines_once_in_order(
    tmp_path: Path, num_lines: int, num_workers: int
) -> None:
    source = scan(write(tmp_path, b"ab\n" * num_lines))
    chunks = source.chunks(num_workers)
    assert [chunk.first for chunk in chunks] == [
        1 + sum(each.num_lines for each in chunks[:i]) for i in range(len(chunks))
    ]
    assert sum(chunk.num_lines for chunk in chunks) == num_lines
    assert [chunk.start for chunk in chunks] == [0, *(chunk.stop for chunk in chunks[:-1])]
    assert max(chunk.num_lines for chunk in chunks) <= MAX_CHUNK_LINES
    assert len(chunks) >= min(num_workers, num_lines)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidData, match=r"x\.jsonl: the file is empty"):
        scan(write(tmp_path, b""))


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidData, match=r"nothing\.jsonl: no such file"):
        scan(tmp_path / "nothing.jsonl")
    for path in (tmp_path, Path("/dev/zero")):
        with pytest.raises(InvalidData, match=f"{path}: not a file"):
            scan(path)


def test_a_relative_path_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, b"a\n")
    monkeypatch.chdir(tmp_path)
    assert scan(Path("x.jsonl")).path == tmp_path / "x.jsonl"
