"""Opens files that somebody else may have written: regular files only, of bounded size.

A device, a pipe or a folder is refused without reading it; JSON is refused when it is longer than
allowed, nested too deep, or names a key twice.
"""

import hashlib
import io
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from encoders.errors import WeightsError


@contextmanager
def open_untrusted(
    path: Path, max_bytes: int, sha256: str | None = None
) -> Iterator[tuple[io.BufferedReader, int]]:
    """The open file and its size in bytes. Raises WeightsError for what is not a regular file of
    at most `max_bytes`, or has another digest than the one given."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path}: cannot be opened: {error}") from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise WeightsError(f"{path}: not a regular file but a folder, device or pipe")
    with os.fdopen(descriptor, "rb") as file:
        if status.st_size > max_bytes:
            raise WeightsError(
                f"{path}: it has {status.st_size} bytes; at most {max_bytes} are allowed"
            )
        if sha256 is not None:
            _check_digest(path, file, sha256)
        yield file, status.st_size


def read_json(path: Path, max_bytes: int, sha256: str | None = None) -> Any:
    """The JSON value a file holds. Raises WeightsError as above, and for what is not JSON."""
    with open_untrusted(path, max_bytes, sha256) as (file, size):
        data = file.read(size)
    try:
        return parse_json(data)
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{path}: not JSON: {error}") from error


def parse_json(data: bytes) -> Any:
    """The value of UTF-8 JSON text. Raises ValueError or RecursionError."""
    return json.loads(
        data.decode("utf-8"), object_pairs_hook=_unique_keys, parse_constant=_no_constant
    )


def _check_digest(path: Path, file: io.BufferedReader, expected: str) -> None:
    actual = hashlib.file_digest(file, "sha256").hexdigest()
    file.seek(0)
    if actual != expected:
        raise WeightsError(
            f"{path}: its sha256 is {actual}, expected {expected}: the file is damaged or was "
            "changed after it was written"
        )


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("an object names a key twice")
    return values


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")
