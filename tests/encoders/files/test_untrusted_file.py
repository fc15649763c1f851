import os
from pathlib import Path

import pytest

from encoders.errors import WeightsError
from encoders.files.untrusted_file import open_untrusted, parse_json, read_json


def refuse(path: Path, reason: str, max_bytes: int = 1 << 20) -> None:
    for opened in (open_untrusted(path, max_bytes), None):
        with pytest.raises(WeightsError, match=reason) as raised:
            if opened is None:
                read_json(path, max_bytes)
            else:
                opened.__enter__()
        assert str(raised.value).startswith(f"{path}: ")


def test_a_regular_file_is_opened_with_its_size(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b'{"a": 1}')
    with open_untrusted(tmp_path / "a", 8) as (file, size):
        assert (file.read(), size) == (b'{"a": 1}', 8)
    assert file.closed
    (tmp_path / "link").symlink_to("a")  # as model hubs' caches have them
    assert read_json(tmp_path / "link", 8) == {"a": 1}


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/null", "/dev/urandom", "/dev/tty"])
def test_a_link_to_a_device_is_never_read(tmp_path: Path, device: str) -> None:
    (tmp_path / "a").symlink_to(device)
    refuse(tmp_path / "a", "not a regular file|cannot be opened")


def test_a_pipe_is_refused_at_once_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a")
    refuse(tmp_path / "a", "not a regular file but a folder, device or pipe")


def test_a_folder_a_loop_and_nothing_are_refused(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    refuse(tmp_path / "folder", "not a regular file")
    refuse(tmp_path / "loop", "cannot be opened: .*symbolic links")
    refuse(tmp_path / "nothing", "cannot be opened: .*No such file")
    refuse(tmp_path / ("x" * 300), "cannot be opened: .*too long")
    refuse(Path("a\0b"), "cannot be opened: embedded null byte")


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "a").open("wb") as file:
        file.truncate(1 << 40)
    refuse(tmp_path / "a", f"it has {1 << 40} bytes; at most 1048576 are allowed")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "Expecting value"),
        (b"{", "Expecting property name"),
        (b"\xff", "codec can't decode"),
        (b"\xef\xbb\xbf{}", "BOM"),
        (b"{} {}", "Extra data"),
        (b'{"a": 1, "a": 1}', "names a key twice"),
        (b"[NaN]", "NaN is no JSON number"),
        (b"[-Infinity]", "-Infinity is no JSON number"),
        (b"[" * 100_000, "recursion"),
        (b'{"a":' * 100_000, "recursion"),
        (b"9" * 5000, "digits"),
        (b"\x80\x04.", "codec can't decode"),
    ],
)
def test_what_is_not_plain_json_is_refused(tmp_path: Path, data: bytes, reason: str) -> None:
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(WeightsError, match=f"^{tmp_path / 'a'}: not JSON: .*{reason}"):
        read_json(tmp_path / "a", 1 << 20)
    with pytest.raises((ValueError, RecursionError), match=reason):
        parse_json(data)
