"""Files of a local artifact store: read in chunks, and swept of what killed writers left."""

import time
from collections.abc import Iterator
from pathlib import Path

from encoders.files.durable_file import PART_SUFFIX

CHUNK_BYTES = 1 << 20


def read_chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def sweep_parts(folder: Path, older_than_s: float) -> int:
    """Remove what killed writers left below `folder`; return how many files that were."""
    before = time.time() - older_than_s
    orphans = [p for p in folder.rglob(f".*{PART_SUFFIX}") if p.stat().st_mtime <= before]
    for orphan in orphans:
        orphan.unlink(missing_ok=True)
    return len(orphans)
