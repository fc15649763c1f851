"""An archive as a zip file: its manifest first, then artifacts by digest, all stored as they are.

Nothing in it is believed: names are only compared with what may stand there and never become paths,
nothing is compressed, so nothing grows, and all members together are no longer than the file.
"""

import os
import stat
import uuid
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from encoders.errors import WeightsError
from encoders.files.durable_file import PART_SUFFIX, fsync_folder
from encoders.files.untrusted_file import open_untrusted
from orchestrator.domain.errors import InvalidInput

MANIFEST = "manifest.json"
FOLDER = "artifacts/"
MAX_ARCHIVE_BYTES = 1 << 40
MAX_MANIFEST_BYTES = 1 << 28
#: The earliest time that a zip can hold: an archive says nothing of when it was written.
_TIME = (1980, 1, 1, 0, 0, 0)
_MODE = (stat.S_IFREG | 0o644) << 16
_LOCAL_HEADER = b"PK\x03\x04"
_ENCRYPTED = 0x1
_BROKEN = (
    zipfile.BadZipFile,
    NotImplementedError,
    RuntimeError,
    ValueError,
    OverflowError,
    EOFError,
    OSError,
)


class ArchiveFile:
    """An open archive whose members' names and sizes are checked; their bytes are not yet."""

    def __init__(self, zip_file: zipfile.ZipFile, place: str) -> None:
        self._zip, self.place = zip_file, place
        infos = zip_file.infolist()
        if not infos or infos[0].filename != MANIFEST:
            raise refused(place, f"its first member is not {MANIFEST}")
        self.sizes: Mapping[str, int] = {
            info.filename.removeprefix(FOLDER): info.file_size for info in infos[1:]
        }

    def manifest(self) -> bytes:
        if self._zip.getinfo(MANIFEST).file_size > MAX_MANIFEST_BYTES:
            raise refused(self.place, f"its manifest is longer than {MAX_MANIFEST_BYTES} bytes")
        return self._read(MANIFEST)

    def artifact(self, digest: str) -> bytes:
        """A member's bytes; the caller checks them against `digest`, and their size before."""
        return self._read(FOLDER + digest)

    def _read(self, name: str) -> bytes:
        try:
            return self._zip.read(name)
        except _BROKEN as error:
            raise refused(self.place, f"{name} cannot be read: {error}") from error


@contextmanager
def open_archive(path: Path) -> Iterator[ArchiveFile]:
    """Open an archive that somebody else may have written. Raises InvalidInput for anything that
    `write_archive` does not write."""
    try:
        with open_untrusted(path, MAX_ARCHIVE_BYTES) as (file, num_bytes):
            if file.read(len(_LOCAL_HEADER)) != _LOCAL_HEADER:
                raise refused(str(path), "it is no zip file, or something stands before it")
            try:
                zip_file = zipfile.ZipFile(file)
                _check_members(zip_file.infolist(), num_bytes)
            except _BROKEN as error:
                raise refused(str(path), str(error)) from error
            with zip_file:
                yield ArchiveFile(zip_file, str(path))
    except WeightsError as error:
        raise refused(str(path), str(error).removeprefix(f"{path}: ")) from error


def write_archive(path: Path, manifest: bytes, artifacts: Iterator[tuple[str, bytes]]) -> None:
    """Write an archive as `path`, whole or not at all. Equal content gives equal bytes."""
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}{PART_SUFFIX}")
    try:
        with part.open("xb") as file:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as zip_file:
                zip_file.writestr(_info(MANIFEST), manifest)
                for digest, data in artifacts:
                    zip_file.writestr(_info(FOLDER + digest), data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    fsync_folder(path.parent)


def refused(place: str, why: str) -> InvalidInput:
    """The error for a file that is no archive."""
    return InvalidInput(
        f"{place}: not an archive of prompts: {why}",
        "Give a file that `tutti prompts export` wrote. Nothing was imported.",
    )


def _info(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, _TIME)
    info.create_system, info.external_attr = 3, _MODE
    return info


def _check_members(infos: list[zipfile.ZipInfo], num_bytes: int) -> None:
    """Raise ValueError for what no archive of ours has."""
    names = [info.filename for info in infos]
    if len(set(names)) != len(names):
        raise ValueError("a member stands in it twice")
    if infos and infos[0].header_offset != 0:
        raise ValueError("something stands before its first member")
    for info in infos:
        _check_member(info)
    if sum(info.file_size for info in infos) > num_bytes:
        raise ValueError("its members claim to be longer than the file")


def _check_member(info: zipfile.ZipInfo) -> None:
    name, mode = info.filename[:100], info.external_attr >> 16
    digest = info.filename.removeprefix(FOLDER)
    is_artifact = info.filename == FOLDER + digest and len(digest) == 64
    if info.filename != MANIFEST and not (is_artifact and set(digest) <= set("0123456789abcdef")):
        raise ValueError(f"it holds {name!r}, which belongs in none")
    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
        raise ValueError(f"{name} is compressed; members are stored as they are")
    if info.flag_bits & _ENCRYPTED:
        raise ValueError(f"{name} is encrypted")
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        raise ValueError(f"{name} is no regular file but a link or a device")
