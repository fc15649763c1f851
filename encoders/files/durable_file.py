"""Files that are whole or absent: written aside, flushed to the disk, then renamed into place.

A process killed at any instant leaves at most a `.part` file, never half a file under its name.
"""

import os
import uuid
from collections.abc import Iterable
from pathlib import Path

PART_SUFFIX = ".part"


def write_durably(path: Path, chunks: Iterable[bytes | memoryview]) -> None:
    """Write `chunks` as `path`, replacing it; if `chunks` or the disk fail, `path` is untouched."""
    make_folder(path.parent)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}{PART_SUFFIX}")
    try:
        with part.open("xb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def make_folder(path: Path) -> None:
    """Create `path` and its parents, each flushed into the folder above it."""
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        fsync_folder(path.parent)


def fsync_folder(path: Path) -> None:
    """Flush a folder's entries, so that a rename in it outlives a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
