"""Folders that batch runs leave and that nothing needs any more: the parts of a cancelled run into
one file, and what an evaluation kept in the data directory.

Never one that a run which may be resumed writes to or reads from, nor one of another registry's,
nor a folder that the user named as the output.
"""

import re
import shutil
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from orchestrator.batch_data.join_parts import drop_parts
from orchestrator.batch_data.location import is_url, open_fs
from orchestrator.batch_data.output_target import RUN_MARK, OutputTarget, run_of
from orchestrator.domain.batch_run import BatchRun, BatchState
from orchestrator.domain.digest import short
from orchestrator.domain.errors import InvalidInput, StoreUnavailable, TuttiError, UnknownName
from orchestrator.registry.batch_book import BatchBook

MAX_RUNS = 1_000_000
#: What an evaluation may take between two of its writes.
EVALUATION_GRACE_S = 3600.0
_RESUMABLE = (BatchState.RUNNING, BatchState.FAILED)


@dataclass(frozen=True)
class LeftFolder:
    """A folder, as a path or URL, that nobody needs `since` then."""

    place: str
    num_bytes: int
    since: datetime
    grace_s: float
    remove: Callable[[str], None]


@dataclass(frozen=True)
class CollectedFolders:
    """`waiting` for their grace to end; `due` could be removed; `removed` were. `failed`: what
    could not be looked at or removed, and why."""

    waiting: tuple[LeftFolder, ...] = ()
    due: tuple[LeftFolder, ...] = ()
    removed: tuple[LeftFolder, ...] = ()
    failed: tuple[str, ...] = ()


def collect_folders(
    book: BatchBook, evaluations: Path, now: datetime, grace_s: float, delete: bool
) -> CollectedFolders:
    """Find the folders and, if `delete`, remove those left for `grace_s` seconds. `now` is the
    database's time, `evaluations` where `tutti evaluate` keeps its output."""
    failed: list[str] = []
    left = [*_cancelled(book, grace_s, failed), *_evaluations(book, evaluations, grace_s, failed)]
    due = [each for each in left if now - each.since >= timedelta(seconds=each.grace_s)]
    removed = [each for each in due if delete and _remove(each, failed)]
    waiting = tuple(each for each in left if each not in due)
    return CollectedFolders(waiting, tuple(due), tuple(removed), tuple(failed))


def _remove(folder: LeftFolder, failed: list[str]) -> bool:
    try:
        folder.remove(folder.place)
    except (TuttiError, OSError) as error:
        failed.append(f"{folder.place}: {error}".splitlines()[0])
        return False
    return True


def _cancelled(book: BatchBook, grace_s: float, failed: list[str]) -> Iterator[LeftFolder]:
    """What cancelled runs wrote to folders of their own."""
    for run in book.list([BatchState.CANCELLED], limit=MAX_RUNS):
        try:
            target = OutputTarget.parse(run.output, run.format)
            folder = target.parts_folder(run.id)
            if not target.is_file or run_of(folder) != run.id:
                continue
            num_bytes = _size(folder)
        except TuttiError as error:  # a server that is away, a driver that is not here
            failed.append(f"parts of batch run {short(run.id)}: {error.message}")
            continue
        assert run.finished_at is not None, "a cancelled run has ended"
        yield LeftFolder(folder, num_bytes, run.finished_at, grace_s, drop_parts)


def _evaluations(
    book: BatchBook, folder: Path, grace_s: float, failed: list[str]
) -> Iterator[LeftFolder]:
    """What evaluations of which no run may be resumed kept."""
    needed = book.list(_RESUMABLE, limit=MAX_RUNS)
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        is_evaluation = re.fullmatch(r"[0-9a-f]{32}", path.name) and not path.is_symlink()
        if not is_evaluation or any(_uses(run, path) for run in needed):
            continue
        try:
            found = _evaluation(book, path, max(grace_s, EVALUATION_GRACE_S))
        except OSError as error:  # somebody else's, or written right now
            failed.append(f"{path}: {error.strerror}")
            continue
        if found is not None:
            yield found


def _evaluation(book: BatchBook, path: Path, grace_s: float) -> LeftFolder | None:
    """None where a run of it may be resumed, or is not of this registry."""
    runs = _marked_runs(book, path)
    if runs is None or any(run.can_resume for run in runs):
        return None
    files = [each.lstat() for each in (path, *path.rglob("*"))]
    written = datetime.fromtimestamp(max(each.st_mtime for each in files), UTC)
    ended = [run.finished_at for run in runs if run.finished_at is not None]
    num_bytes = sum(each.st_size for each in files if stat.S_ISREG(each.st_mode))
    return LeftFolder(str(path), num_bytes, max([written, *ended]), grace_s, shutil.rmtree)


def _uses(run: BatchRun, folder: Path) -> bool:
    return any(
        not is_url(place) and folder in Path(place).parents for place in (run.output, run.source)
    )


def _marked_runs(book: BatchBook, folder: Path) -> Sequence[BatchRun] | None:
    """The runs whose mark the folder bears; None where one is not of this registry."""
    runs = []
    for mark in folder.glob(f"*/{RUN_MARK}"):
        try:
            runs.append(book.get(run_of(str(mark.parent)) or ""))
        except (UnknownName, InvalidInput, StoreUnavailable):
            return None
    return runs


def _size(folder: str) -> int:
    fs, path = open_fs(folder)
    return int(fs.du(path))
