"""Where input and output lie: an absolute local path, or any URL that fsspec knows.

Text that holds `://` or `::` is a URL. Only regular files are read from a disk: a pipe would block,
a device never end.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from orchestrator.domain.errors import InvalidData, InvalidInput, StoreUnavailable, TuttiError

CHUNK_BYTES = 1 << 20
_BLOCK_BYTES = 1 << 22  # s3fs would fetch 50 MB for a shard of one


def absolute(place: str | Path) -> str:
    """A local path made absolute, so that workers agree on it; a URL as it is."""
    text = str(place)
    if text.startswith("file://"):
        text = str(LocalFileSystem._strip_protocol(text))
    return text if is_url(text) else str(Path(text).absolute())


def is_url(place: str) -> bool:
    return "://" in place or "::" in place


def open_fs(place: str) -> tuple[Any, str]:
    """The file system of an absolute path or URL, and the path in it. Raises InvalidInput."""
    if not is_url(place):
        return LocalFileSystem(), place
    try:
        fs, path = fsspec.core.url_to_fs(place)
    except ImportError as error:
        raise InvalidInput(
            f"{place} cannot be opened: {error}",
            "For s3:// install the extra: pip install 'tutti-orchestrator[s3]'; for others, the "
            "package that the message names.",
        ) from error
    except ValueError as error:
        raise InvalidInput(
            f"{place} cannot be opened: {error}",
            "Give a path, or a URL that fsspec knows, like s3://bucket/folder/a.jsonl.",
        ) from error
    return fs, str(path)


def read_chunks(place: str, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
    """Bytes `start` to `stop` (exclusive; None: the end) of a file, in pieces of at most 1 MB."""
    with reading(place), open_file(place) as file:
        file.seek(start)
        left = None if stop is None else stop - start
        while left is None or left > 0:
            chunk = file.read(CHUNK_BYTES if left is None else min(CHUNK_BYTES, left))
            if not chunk:
                return
            left = None if left is None else left - len(chunk)
            yield chunk


def open_file(place: str) -> Any:
    """A file to read bytes from, with `seek`. Raises InvalidData for what is no regular file."""
    if not is_url(place) and not stat.S_ISREG(Path(place).stat().st_mode):
        raise InvalidData(f"{place}: not a file")
    fs, path = open_fs(place)
    return fs.open(path, "rb", block_size=_BLOCK_BYTES)


def file_size(place: str) -> int | None:
    """A file's size in bytes now; None where its server does not say."""
    fs, path = open_fs(place)
    with reading(place):
        if not is_url(place):
            return Path(place).stat().st_size
        fs.invalidate_cache()
        size = fs.info(path)["size"]
        return None if size is None else int(size)


@contextmanager
def reading(place: str) -> Iterator[None]:
    """A failure to read `place` becomes InvalidData, or StoreUnavailable where a server may only
    be away. Drivers raise kinds of their own: botocore's are no OSError."""
    try:
        yield
    except TuttiError:
        raise
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InvalidData(f"{place}: no such file") from error
    except Exception as error:
        if is_url(place):
            raise StoreUnavailable(
                f"cannot read {place}: {error}",
                "Check that its server can be reached, and your permissions there.",
            ) from error
        if isinstance(error, OSError | ValueError):  # ValueError: a name that no file can have
            reason = getattr(error, "strerror", None) or error
            raise InvalidData(f"{place}: cannot be read: {reason}") from error
        raise


def is_within(place: str, folder: str) -> bool:
    """Whether `place` lies directly in `folder`; links on a disk are followed."""
    parent = place.rstrip("/").rpartition("/")[0]
    if is_url(place) or is_url(folder):
        return parent == folder.rstrip("/")
    return os.path.realpath(parent) == os.path.realpath(folder)
