import os
from pathlib import Path

import pytest

from encoders.files.durable_file import make_folder, write_durably


def test_a_file_is_replaced_whole_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "folder" / "a"
    write_durably(path, [b"one"])
    write_durably(path, [b"t", memoryview(b"wo")])
    assert path.read_bytes() == b"two"
    assert [p.name for p in path.parent.iterdir()] == ["a"]


def test_chunks_or_a_disk_that_fail_leave_the_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    write_durably(path, [b"one"])
    with pytest.raises(ZeroDivisionError):
        write_durably(path, (bytes(1 // n) for n in (1, 0)))

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_durably(path, [b"two"])
    assert path.read_bytes() == b"one"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_the_file_is_flushed_before_it_gets_its_name_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, bool]] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        target = Path(f"/proc/self/fd/{descriptor}").readlink()
        seen.append(("folder" if target == tmp_path else "file", (tmp_path / "a").exists()))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    write_durably(tmp_path / "a", [b"one"])
    assert seen == [("file", False), ("folder", True)]


def test_a_folder_that_is_there_is_no_error(tmp_path: Path) -> None:
    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
