"""Files written beside the output's name and then given it: whole or absent, on a disk or a server.

A server has no exclusive rename: there a second writer may come between the look and the write.
"""

import errno
import os
import uuid
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path

from encoders.files.durable_file import PART_SUFFIX, fsync_folder, make_folder, write_durably
from orchestrator.artifacts.object_file import write_object
from orchestrator.artifacts.store_url import explained
from orchestrator.batch_data.location import CHUNK_BYTES, is_url, open_fs

_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)
_REMEDY = "Check that it can be reached, its free space, and your permissions there."


def write_new(place: str, data: bytes) -> bool:
    """Write `data` as `place` if there is nothing yet: True. Otherwise what is there stays: False.
    Raises StoreUnavailable."""
    with writing(place):
        if not is_url(place):
            return _write_new_file(Path(place), data)
        fs, path = open_fs(place)
        fs.invalidate_cache()
        if fs.exists(path):
            return False
        write_object(fs, path, [data])
        return True


def write_over(place: str, chunks: Iterable[bytes]) -> None:
    """Write `chunks` as `place`, replacing it; untouched if they fail. Raises StoreUnavailable."""
    with writing(place):
        if not is_url(place):
            write_durably(Path(place), chunks)
        else:
            fs, path = open_fs(place)
            write_object(fs, path, chunks)


def read_output(place: str) -> Iterator[bytes]:
    """A file's bytes in pieces. Raises FileNotFoundError, StoreUnavailable."""
    fs, path = open_fs(place)
    if is_url(place):
        fs.invalidate_cache()
    if not fs.exists(path):
        raise FileNotFoundError(place)
    with writing(place, "read"), fs.open(path, "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def list_names(folder: str) -> list[str]:
    """The names in a folder, sorted; none where there is no folder. Raises StoreUnavailable."""
    fs, path = open_fs(folder)
    with writing(folder, "list"):
        if is_url(folder):
            fs.invalidate_cache()
        try:
            found = fs.ls(path, detail=False)
        except FileNotFoundError:
            return []
        names = (str(each).rstrip("/").rpartition("/")[2] for each in found)
        return sorted(name for name in names if name != path.rstrip("/").rpartition("/")[2])


def remove(place: str) -> None:
    """Absent is well. Raises StoreUnavailable."""
    fs, path = open_fs(place)
    with writing(place, "remove"), suppress(FileNotFoundError):
        if not is_url(place):
            Path(place).unlink()
        else:
            fs.rm_file(path)


def writing(place: str, verb: str = "write") -> AbstractContextManager[None]:
    return explained(place, verb, _REMEDY)


def _write_new_file(path: Path, data: bytes) -> bool:
    make_folder(path.parent)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}{PART_SUFFIX}")
    try:
        with part.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        is_new = _name_first(part, path)
    finally:
        part.unlink(missing_ok=True)
    fsync_folder(path.parent)
    return is_new


def _name_first(part: Path, path: Path) -> bool:
    """Give a file its name unless another has it: a link, which no two writers can both make."""
    try:
        os.link(part, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if path.exists():  # a disk without links: as on a server
            return False
        part.replace(path)
    return True


def is_leftover(name: str) -> bool:
    """Whether a killed writer left it."""
    return name.startswith(".") and name.endswith(PART_SUFFIX)
