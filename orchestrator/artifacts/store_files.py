"""The files of an artifact store as they lie there, whatever put them: for upkeep alone.

A file is removed only if it is as it was when it was listed. A put refreshes what it finds stored,
so what a put counted on stays; on a disk that holds at every instant, in a bucket but for the one
request between the look and the removal.
"""

import re
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from encoders.files.durable_file import PART_SUFFIX, write_durably
from orchestrator.artifacts import local_file, object_file
from orchestrator.artifacts.local_file import DOOMED_SUFFIX
from orchestrator.artifacts.store_url import explained, open_store

CONTENT = "sha256"
QUARANTINE = "quarantine"


@dataclass(frozen=True)
class StoredFile:
    """A file by its path below the store. `stamp` is when it was written or put again last, in ns
    since 1970 by the store's own clock; 0 where the store does not say."""

    name: str
    num_bytes: int
    stamp: int

    @property
    def digest(self) -> str | None:
        """The digest it is stored under; None for what is no artifact."""
        folder, _, name = self.name.removeprefix(f"{CONTENT}/").partition("/")
        is_digest = re.fullmatch(r"[0-9a-f]{64}", name) and folder == name[:2]
        return name if is_digest else None

    @property
    def is_leftover(self) -> bool:
        """Whether a killed process left it: half a write, or half a removal."""
        name = self.name.rpartition("/")[2]
        return name.startswith(".") and name.endswith((PART_SUFFIX, DOOMED_SUFFIX))


class StoreFiles:
    """Lists, removes and sets aside files of the store at `url`."""

    def __init__(self, url: str) -> None:
        self.url = url

    def list(self) -> Iterator[StoredFile]:
        """Every file among the artifacts, in no order."""
        fs, root = self._open()
        folder = f"{root}/{CONTENT}"
        with self._explained("list"):
            listed = (
                local_file.list_files(Path(folder))
                if isinstance(fs, LocalFileSystem)
                else object_file.list_objects(fs, folder)
            )
            for name, num_bytes, stamp in listed:
                yield StoredFile(f"{CONTENT}/{name}", num_bytes, stamp)

    def remove_unchanged(self, file: StoredFile) -> bool:
        """Remove a listed file, unless it was put again since, or is gone: then False."""
        fs, root = self._open()
        path = f"{root}/{file.name}"
        with self._explained("remove"):
            if isinstance(fs, LocalFileSystem):
                return local_file.remove_unchanged(Path(path), file.stamp)
            return object_file.remove_unchanged(fs, path, file.stamp)

    def restore_doomed(self) -> int:
        """Give back what a killed removal had begun to remove; return how many files."""
        fs, root = self._open()
        if not isinstance(fs, LocalFileSystem):
            return 0
        with self._explained("restore"):
            return local_file.restore_doomed(Path(root) / CONTENT)

    def set_aside(self, file: StoredFile) -> str:
        """Move a file out of the artifacts, where nothing finds it by its digest; return its new
        name. Another put of the digest then stores it afresh."""
        fs, root = self._open()
        name = f"{QUARANTINE}/{file.name.rpartition('/')[2]}.{uuid.uuid4().hex[:8]}"
        with self._explained("set aside"):
            object_file.make_folder(fs, f"{root}/{QUARANTINE}")
            fs.mv(f"{root}/{file.name}", f"{root}/{name}")
        return name

    def read_note(self, name: str, max_bytes: int = 1 << 28) -> bytes | None:
        """A note beside the artifacts; None if there is none, or it is larger than `max_bytes`."""
        fs, root = self._open()
        with self._explained("read"):
            try:
                data: bytes = fs.cat_file(f"{root}/{name}", end=max_bytes + 1)
            except FileNotFoundError:
                return None
        return data if len(data) <= max_bytes else None

    def write_note(self, name: str, data: bytes) -> None:
        """Replace a note, whole or not at all."""
        fs, root = self._open()
        with self._explained("write"):
            if isinstance(fs, LocalFileSystem):
                write_durably(Path(root) / name, [data])
            else:
                object_file.write_object(fs, f"{root}/{name}", [data])

    def _open(self) -> tuple[Any, str]:
        return open_store(self.url)

    def _explained(self, verb: str) -> AbstractContextManager[None]:
        remedy = "Check that the store can be reached, and your permissions there."
        return explained(self.url, f"{verb} files of the artifact store", remedy)
