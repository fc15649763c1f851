"""Collects artifacts that nothing names: marked when first seen so, removed a grace period later.

Never takes what stands anywhere in the database, what was put again since it was marked, or a file
that is no artifact. Safe beside running jobs, beside other collections, and killed at any instant.
"""

from dataclasses import dataclass, field
from datetime import datetime, timedelta

from orchestrator.artifacts.store_files import StoredFile, StoreFiles
from orchestrator.domain.errors import InvalidInput
from orchestrator.registry.references import References
from orchestrator.upkeep.batch_folders import CollectedFolders
from orchestrator.upkeep.marks import read_marks, renew_marks, write_marks

#: What an artifact that is stored may take until the database names it.
MIN_BUSY_GRACE_S = 3600.0


@dataclass(frozen=True)
class Collected:
    """What one collection saw and did. `waiting` are unnamed but not for long enough; `due` could
    be removed; `removed` were; what is `due` but was put again meanwhile is in `spared`. `folders`
    are those of batch runs."""

    num_files: int
    num_named: int
    waiting: tuple[StoredFile, ...]
    due: tuple[StoredFile, ...]
    removed: tuple[StoredFile, ...] = ()
    spared: tuple[StoredFile, ...] = ()
    folders: CollectedFolders = field(default_factory=CollectedFolders)


def collect(
    files: StoreFiles,
    references: References,
    now: datetime,
    grace_s: float,
    delete: bool = False,
) -> Collected:
    """Mark what is unnamed and, if `delete`, remove what has been marked for `grace_s` seconds.

    `now` is the database's time. Without `delete` nothing but the marks is written.
    """
    if delete:
        files.restore_doomed()
    listed = list(files.list())
    named = references.digests()  # after the listing: what is named meanwhile counts as named
    unnamed = [file for file in listed if _is_unnamed(file, named)]
    marks = renew_marks(read_marks(files), unnamed, now)
    write_marks(files, marks)
    grace = timedelta(seconds=grace_s)
    due = tuple(file for file in unnamed if now - marks[file.name].since >= grace)
    waiting = tuple(file for file in unnamed if now - marks[file.name].since < grace)
    num_named = sum(file.digest in named for file in listed)
    removed = tuple(file for file in due if delete and files.remove_unchanged(file))
    gone = frozenset(file.name for file in removed)
    if gone:
        write_marks(files, {name: mark for name, mark in marks.items() if name not in gone})
    spared = tuple(file for file in due if delete and file.name not in gone)
    return Collected(len(listed), num_named, waiting, due, removed, spared)


def check_grace(grace_s: float, num_busy: int) -> None:
    """Raise InvalidInput for a grace shorter than what `num_busy` unfinished jobs may need."""
    if num_busy and grace_s < MIN_BUSY_GRACE_S:
        raise InvalidInput(
            f"a grace of {grace_s:.0f} s is too short while {num_busy} jobs wait or run: what they "
            "store is named a little later",
            f"Give at least {MIN_BUSY_GRACE_S / 3600:.0f}h, or wait until the jobs have ended.",
        )


def _is_unnamed(file: StoredFile, named: frozenset[str]) -> bool:
    return file.is_leftover or (file.digest is not None and file.digest not in named)
