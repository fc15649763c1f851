"""Objects on a store that is not a local disk: written under another name then moved, listed, and
removed if unchanged. A stamp is an object's time in ns since 1970, 0 where the store has none."""

import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from encoders.files.durable_file import PART_SUFFIX

#: fsspec's names of stores without folders.
_BUCKETS = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss"})
#: What file systems of fsspec call an object's time.
_TIMES = ("LastModified", "last_modified", "mtime", "updated", "created")


def write_object(fs: Any, path: str, chunks: Iterable[bytes]) -> None:
    """Write `chunks` as `path` on an fsspec file system.

    A move may be a copy there, so a reader must check the digest, as every reader of the artifact
    store does. Where two writers of the same content meet, either's object will do.
    """
    folder, _, name = path.rpartition("/")
    make_folder(fs, folder)
    part = f"{folder}/.{name}.{uuid.uuid4().hex}{PART_SUFFIX}"
    try:
        with fs.open(part, "wb") as file:
            for chunk in chunks:
                file.write(chunk)
        fs.mv(part, path)
    except FileExistsError:
        fs.rm_file(part)
    except BaseException:
        with suppress(OSError, NotImplementedError):
            fs.rm_file(part)
        raise


def make_folder(fs: Any, folder: str) -> None:
    """Create a folder where the store has such; in a bucket it would create the bucket, of
    whatever name was mistyped."""
    protocols = {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)
    if not protocols & _BUCKETS:
        fs.makedirs(folder, exist_ok=True)


def list_objects(fs: Any, folder: str) -> Iterator[tuple[str, int, int]]:
    """Each object below `folder`: its path in it, its size in bytes, its stamp."""
    fs.invalidate_cache()
    try:
        found: Mapping[str, Mapping[str, Any]] = fs.find(folder, detail=True)
    except FileNotFoundError:
        return
    fs.invalidate_cache()  # what was listed must not answer for what is there later
    for path, info in found.items():
        name = path.partition(f"{folder.lstrip('/')}/")[2]
        yield name, int(info["size"] or 0), _stamp(info)


def remove_unchanged(fs: Any, path: str, stamp: int) -> bool:
    """Remove the object if its stamp is this; False if it is another, or there is none."""
    try:
        if _stamp(fs.info(path)) != stamp:
            return False
        fs.rm_file(path)
    except FileNotFoundError:
        return False
    return True


def _stamp(info: Mapping[str, Any]) -> int:
    moment = next((info[name] for name in _TIMES if info.get(name) is not None), None)
    if isinstance(moment, int | float):
        return int(moment * 1_000_000_000)
    if isinstance(moment, datetime):
        aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return int(aware.timestamp() * 1_000_000) * 1000
    return 0
