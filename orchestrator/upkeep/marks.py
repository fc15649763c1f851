"""What collection saw unnamed, and since when: one small JSON object beside the artifacts.

In the store and not in the database, because it is about what lies there: a database that is
restored or moved must not bring old marks along, and a mark is a hint alone. Losing marks, or
writing over another collection's, only lets garbage live for another grace period.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from orchestrator.artifacts.store_files import StoredFile, StoreFiles

NOTE = "gc.json"
Marks = Mapping[str, "Mark"]


@dataclass(frozen=True)
class Mark:
    """An unnamed file, as it was when it was first seen so, at `since` by the database's clock."""

    since: datetime
    stamp: int


def read_marks(files: StoreFiles) -> Marks:
    """The marks of earlier collections; none if there are none that can be read."""
    try:
        values = json.loads(files.read_note(NOTE) or b"{}")
        return {
            str(name): Mark(datetime.fromisoformat(since), int(stamp))
            for name, (since, stamp) in values.items()
            if datetime.fromisoformat(since).tzinfo is not None
        }
    except (ValueError, TypeError, AttributeError, RecursionError):
        return {}


def write_marks(files: StoreFiles, marks: Marks) -> None:
    values = {name: [mark.since.isoformat(), mark.stamp] for name, mark in marks.items()}
    files.write_note(NOTE, json.dumps(values, sort_keys=True).encode())


def renew_marks(marks: Marks, unnamed: Iterable[StoredFile], now: datetime) -> dict[str, Mark]:
    """Marks of exactly these files: an old mark stays if its file was not put again since."""
    renewed = {}
    for file in unnamed:
        old = marks.get(file.name)
        is_same = old is not None and old.stamp == file.stamp and old.since <= now
        renewed[file.name] = old if old and is_same else Mark(now, file.stamp)
    return renewed
