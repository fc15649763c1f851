"""Which files a batch's input is: one file, a folder's, or those a pattern finds.

A file's format is its name's ending. A folder gives its own files alone, in the order of their
names, without hidden ones (`.x`, `_x`) and without those of other endings.
"""

import os
import posixpath
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from orchestrator.batch_data.batch_input import InputFormat
from orchestrator.batch_data.location import absolute, is_url, open_fs, reading
from orchestrator.domain.errors import InvalidData

ENDINGS = {f".{each}": each for each in InputFormat} | {".ndjson": InputFormat.JSONL}
_KNOWN = ", ".join(f".{each}" for each in InputFormat)


@dataclass(frozen=True)
class FoundFile:
    """A file to read; `name` is its path below the folder that all the files share."""

    url: str
    name: str
    format: InputFormat


def find_files(source: str | Path) -> list[FoundFile]:
    """The files of `source`, at least one. Raises InvalidData, InvalidInput, StoreUnavailable."""
    place = absolute(source)
    fs, path = open_fs(place)
    with reading(place):
        if not is_url(place) and not os.path.lexists(place) and not is_pattern(place):
            raise FileNotFoundError(place)
        if _is_folder(fs, path, place):
            found = {str(info["name"]): info for info in fs.ls(path, detail=True)}
            return _named(place, {name: found[name] for name in found if _is_open(name)}, fs)
        if is_pattern(place) and not fs.exists(path):
            return _named(place, fs.glob(path, detail=True), fs)
    kind = format_of(path)
    if kind is None:
        raise InvalidData(
            f"{place}: its name does not say its format",
            f"Name it by what it holds: {_KNOWN}.",
        )
    return [FoundFile(place, posixpath.basename(path.rstrip("/")), kind)]


def format_of(name: str) -> InputFormat | None:
    return ENDINGS.get(posixpath.splitext(name)[1].lower())


def is_pattern(place: str) -> bool:
    return any(mark in place for mark in "*?[")


def would_find(source: str, place: str) -> bool:
    """Whether a file at the absolute `place` would be one of what the source names, if it is a
    pattern."""
    return is_pattern(source) and PurePosixPath(place).match(absolute(source))


def _is_folder(fs: Any, path: str, place: str) -> bool:
    if not is_url(place):
        return Path(place).is_dir()
    fs.invalidate_cache()
    return bool(fs.isdir(path))


def _is_file(path: str, info: Mapping[str, Any], place: str) -> bool:
    """A server has said so in its listing; asking of each again would take a request a file."""
    return info["type"] == "file" if is_url(place) else Path(path).is_file()


def _is_open(path: str) -> bool:
    return not posixpath.basename(path.rstrip("/")).startswith((".", "_"))


def _named(place: str, found: Mapping[str, Mapping[str, Any]], fs: Any) -> list[FoundFile]:
    """The files of known endings among what was found, sorted."""
    if "::" in place:
        raise InvalidData(f"{place}: a chained URL must name one file", "Give the URL of one file.")
    kinds = {
        path: kind
        for path in sorted(found)
        if (kind := format_of(path)) and _is_file(path, found[path], place)
    }
    if not kinds:
        raise InvalidData(
            f"{place}: no input file is there", f"Their names must end in one of {_KNOWN}."
        )
    root = posixpath.commonpath([posixpath.dirname(path) for path in kinds])
    url = (lambda path: str(fs.unstrip_protocol(path))) if is_url(place) else str
    return [
        FoundFile(url(path), path[len(root) :].lstrip("/"), kind) for path, kind in kinds.items()
    ]
