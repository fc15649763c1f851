"""The content-addressed artifact store: a file's only name is the sha256 of its bytes.

Layout below the URL: `sha256/ab/abcdef...`. What is stored never changes, bytes are checked against
their digest whenever they are read, and nothing but a digest ever becomes a path. A local folder by
default; any fsspec URL else. It holds only its URL, so it pickles.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from encoders.files.durable_file import write_durably
from orchestrator.artifacts.local_file import CHUNK_BYTES, read_chunks, refresh, sweep_parts
from orchestrator.artifacts.object_file import write_object
from orchestrator.artifacts.store_url import explained, open_store
from orchestrator.domain.digest import digest_bytes, digest_file, short
from orchestrator.domain.errors import IntegrityError
from orchestrator.domain.prompt_version import Artifact

MAX_BYTES = 1 << 32


class ArtifactStore:
    """Puts and gets bytes by digest. A relative folder is made absolute, so workers agree on it."""

    def __init__(self, url: str) -> None:
        self.url = url if "://" in url or "::" in url else str(Path(url).absolute())

    def __repr__(self) -> str:
        return f"ArtifactStore({self.url!r})"

    def put_bytes(self, data: bytes) -> Artifact:
        """Store `data`; what is there already is refreshed, so that no collection takes it."""
        artifact = Artifact(digest_bytes(data), len(data))
        self._put(artifact, [data])
        return artifact

    def put_file(self, path: Path) -> Artifact:
        """Store a file's bytes, streamed; as `put_bytes`."""
        artifact = Artifact(digest_file(path), path.stat().st_size)
        self._put(artifact, _verified(read_chunks(path), artifact.digest, str(path)))
        return artifact

    def get_bytes(self, digest: str, max_bytes: int = MAX_BYTES) -> bytes:
        """The bytes of `digest`, or IntegrityError: missing, too large, or not what it says."""
        size = self._size_or_raise(digest)
        if size > max_bytes:
            raise IntegrityError(
                f"{self._place(digest)}: {size} bytes; expected at most {max_bytes}"
            )
        return b"".join(self._read(digest))

    def fetch(self, digest: str, to: Path) -> None:
        """Write the verified bytes of `digest` as `to`, replacing it, whole or not at all."""
        self._size_or_raise(digest)
        with self._explained("fetch", digest):
            write_durably(to, self._read(digest))

    def verify(self, digest: str) -> None:
        """Read every byte of `digest`; raise IntegrityError if it is missing or altered."""
        self._size_or_raise(digest)
        for _ in self._read(digest):
            pass

    def exists(self, digest: str) -> bool:
        return self._size(digest) is not None

    def discard(self, digest: str) -> None:
        """Remove what nothing refers to any more (a superseded checkpoint); absent is well."""
        fs, path = self._locate(digest)
        with self._explained("remove", digest), suppress(FileNotFoundError):
            fs.rm_file(path)

    def sweep(self, older_than_s: float = 3600) -> int:
        """Remove what killed writers left on a local disk; return how many files that were."""
        fs, root = open_store(self.url)
        is_folder = isinstance(fs, LocalFileSystem) and Path(root).is_dir()
        return sweep_parts(Path(root), older_than_s) if is_folder else 0

    def _put(self, artifact: Artifact, chunks: Iterable[bytes]) -> None:
        fs, path = self._locate(artifact.digest)
        with self._explained("store", artifact.digest):
            if not isinstance(fs, LocalFileSystem):
                # An object is written again: that takes what reading it would, and refreshes it.
                write_object(fs, path, chunks)
            elif not self._holds(artifact, Path(path)):
                write_durably(Path(path), chunks)

    def _holds(self, artifact: Artifact, path: Path) -> bool:
        """Whether it is stored unharmed. A harmed copy is replaced by the next put."""
        try:
            refresh(path)
            if self._size(artifact.digest) != artifact.num_bytes:
                return False
            self.verify(artifact.digest)
        except (FileNotFoundError, IntegrityError):
            return False
        return True

    def _read(self, digest: str) -> Iterator[bytes]:
        fs, path = self._locate(digest)
        with self._explained("read", digest), fs.open(path, "rb") as file:
            chunks = iter(lambda: file.read(CHUNK_BYTES), b"")
            yield from _verified(chunks, digest, self._place(digest))

    def _size(self, digest: str) -> int | None:
        fs, path = self._locate(digest)
        with self._explained("look up", digest):
            try:
                return int(fs.info(path)["size"])
            except FileNotFoundError:
                return None

    def _size_or_raise(self, digest: str) -> int:
        size = self._size(digest)
        if size is None:
            raise IntegrityError(
                f"{self._place(digest)}: the artifact {digest} is missing from the store",
                "Restore the file from a backup, or train the version again.",
            )
        return size

    def _locate(self, digest: str) -> tuple[Any, str]:
        check_digest(digest)
        fs, root = open_store(self.url)
        return fs, f"{root}/sha256/{digest[:2]}/{digest}"

    def _place(self, digest: str) -> str:
        return f"{self.url.rstrip('/')}/sha256/{digest[:2]}/{digest}"

    def _explained(self, verb: str, digest: str) -> AbstractContextManager[None]:
        remedy = "Check that the store can be reached, its free space, and your permissions there."
        return explained(self.url, f"{verb} the artifact {short(digest)} in", remedy)


def check_digest(digest: str) -> None:
    """Raise IntegrityError unless `digest` is 64 lower-case hex digits."""
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise IntegrityError(
            f"{digest[:80]!r} is not a digest; expected 64 lower-case hex digits of a sha256"
        )


def _verified(chunks: Iterable[bytes], digest: str, place: str) -> Iterator[bytes]:
    """Pass `chunks` on; after the last one raise IntegrityError if they are not `digest`."""
    actual = hashlib.sha256()
    for chunk in chunks:
        actual.update(chunk)
        yield chunk
    if actual.hexdigest() != digest:
        raise IntegrityError(
            f"{place}: the bytes are not what their digest says: expected {digest}, "
            f"actual {actual.hexdigest()}",
            "The file was altered or cut short; restore it, or train the version again.",
        )
