"""Files of a local artifact store: read, refreshed, listed, and removed if unchanged.

A stamp is a file's time in ns since 1970. Removing goes by a rename, so of a put that refreshes a
file and a removal at once, either the removal sees the new stamp or the put sees no file.
"""

import os
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from encoders.files.durable_file import PART_SUFFIX

CHUNK_BYTES = 1 << 20
DOOMED_SUFFIX = ".doomed"


def read_chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def refresh(path: Path) -> None:
    """Give a file a new stamp; raise FileNotFoundError where there is none."""
    moment = time.time_ns()  # the kernel's own stamp may be some ms old, and equal the one before
    os.utime(path, ns=(moment, moment))


def list_files(folder: Path) -> Iterator[tuple[str, int, int]]:
    """Each file below `folder`: its path in it, its size in bytes, its stamp. Links are listed as
    they are, and not followed."""
    if not folder.is_dir():
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                for name, num_bytes, stamp in list_files(Path(entry.path)):
                    yield f"{entry.name}/{name}", num_bytes, stamp
                continue
            with suppress(FileNotFoundError):
                status = entry.stat(follow_symlinks=False)
                yield entry.name, status.st_size, status.st_mtime_ns


def remove_unchanged(path: Path, stamp: int) -> bool:
    """Remove `path` if its stamp is this; False if it is another, or there is no file."""
    doomed = path.with_name(f".{path.name}.{uuid.uuid4().hex}{DOOMED_SUFFIX}")
    try:
        path.rename(doomed)
        if doomed.lstat().st_mtime_ns != stamp:
            _give_back(doomed, path)
            return False
        doomed.unlink()
    except FileNotFoundError:
        return False
    return True


def restore_doomed(folder: Path) -> int:
    """Give back what killed removals left below `folder`; return how many files that were."""
    doomed = list(folder.rglob(f".*{DOOMED_SUFFIX}"))
    for path in doomed:
        name = path.name.removesuffix(DOOMED_SUFFIX)[1:].rpartition(".")[0]
        with suppress(FileNotFoundError):
            _give_back(path, path.with_name(name))
    return len(doomed)


def sweep_parts(folder: Path, older_than_s: float) -> int:
    """Remove what killed writers left below `folder`; return how many files that were."""
    before = time.time() - older_than_s
    orphans = [p for p in folder.rglob(f".*{PART_SUFFIX}") if p.stat().st_mtime <= before]
    for orphan in orphans:
        orphan.unlink(missing_ok=True)
    return len(orphans)


def _give_back(doomed: Path, path: Path) -> None:
    """Put a file back in its place, unless a put has filled it meanwhile."""
    with suppress(FileExistsError):
        os.link(doomed, path)
    doomed.unlink()
