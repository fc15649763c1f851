"""Objects on a store that is not a local disk: written under another name, then moved."""

import uuid
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from encoders.files.durable_file import PART_SUFFIX


def write_object(fs: Any, path: str, chunks: Iterable[bytes]) -> None:
    """Write `chunks` as `path` on an fsspec file system.

    A move may be a copy there, so a reader must check the digest, as every reader of the artifact
    store does. Where two writers of the same content meet, either's object will do.
    """
    folder, _, name = path.rpartition("/")
    part = f"{folder}/.{name}.{uuid.uuid4().hex}{PART_SUFFIX}"
    fs.makedirs(folder, exist_ok=True)
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
