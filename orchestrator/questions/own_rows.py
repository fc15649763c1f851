"""Which rows of a data set are whose: where rows name tasks, each task's are written out on their
own, so that a version can be pinned for all of a run.

Rows are read twice and never kept; a task's name never becomes a file's.
"""

import json
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import IO

from orchestrator.batch_data.batch_input import Input
from orchestrator.batch_data.batch_row import BatchRow
from orchestrator.batch_data.location import open_fs
from orchestrator.batch_data.scan import DEFAULT_SHARD_ROWS, scan
from orchestrator.batch_data.shard_reader import read_shard
from orchestrator.domain.batch import BatchSettings
from orchestrator.domain.digest import digest_bytes
from orchestrator.domain.errors import InvalidInput
from orchestrator.domain.prompt_version import PromptRef


@dataclass(frozen=True)
class OwnRows:
    """A data set split by task or, where its rows name none or all the same one, as it is.

    `digests`: sha256 of its files; `digest`: of the one file, else of all (the digests' lines).
    """

    source: str
    digests: tuple[str, ...]
    is_by_task: bool
    _files: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        if len(self.digests) == 1:
            return self.digests[0]
        return digest_bytes("".join(f"{digest}\n" for digest in self.digests).encode())

    def of(self, task: str, settings: BatchSettings) -> tuple[str, BatchSettings]:
        """What a run of `task` reads, and how. Rows that were written out have their fields under
        the fields' own names."""
        if not self._files:
            return self.source, settings
        return self._files[task], replace(settings, columns={})


def split_rows(
    source: str, tasks: Collection[str], settings: BatchSettings, folder: str
) -> OwnRows:
    """Look at the rows' tasks and, where they differ, write those of `tasks` to `folder` (a path or
    URL, made if need be). Raises InvalidInput where the data name tasks, but not one of these."""
    found = scan(source, DEFAULT_SHARD_ROWS, replace(settings, prompt=PromptRef("any", 1)), _ignore)
    digests = tuple(file.sha256 for file in found.files)
    named = Counter(row.ref.task for row in _rows(found, settings) if row.ref is not None)
    unnamed = found.num_rows - named.total()
    if not named or not _has_tasks(found, settings):
        return OwnRows(source, digests, is_by_task=False)
    for task in tasks:
        if not named[task]:
            known = ", ".join(sorted(named)[:10])
            raise InvalidInput(
                f"{source}: its rows name tasks, and none of them {task!r}",
                f"They name {known}. Give data of {task}, or data that name no task.",
            )
    if set(named) == set(tasks) and len(named) == 1 and not unnamed:
        return OwnRows(source, digests, is_by_task=True)
    files = _write(found, sorted(tasks), settings, folder)
    left = {
        "name no task, or cannot be read": unnamed,
        "are of other tasks": sum(count for task, count in named.items() if task not in tasks),
    }
    notes = tuple(f"{count} rows {why}: left out" for why, count in left.items() if count)
    return OwnRows(source, digests, True, files, notes)


def _rows(source: Input, settings: BatchSettings) -> Iterator[BatchRow]:
    plain = replace(settings, prompt=None)
    for shard in source.shards:
        yield from read_shard(source, shard, plain)


def _has_tasks(source: Input, settings: BatchSettings) -> bool:
    """Whether a row could name its task at all."""
    column = settings.columns.get("task", "task")
    return any(not file.columns or column in file.columns for file in source.files)


def _write(source: Input, tasks: list[str], settings: BatchSettings, folder: str) -> dict[str, str]:
    files = {task: f"{folder}/rows-{place}.jsonl" for place, task in enumerate(tasks)}
    with ExitStack() as stack:
        opened = {task: stack.enter_context(_create(file)) for task, file in files.items()}
        for row in _rows(source, settings):
            if row.ref and row.ref.task in opened:
                opened[row.ref.task].write(_line(row, settings))
    return files


def _create(place: str) -> IO[bytes]:
    """A new file to write, with the folders above it."""
    fs, path = open_fs(place)
    fs.makedirs(path.rpartition("/")[0], exist_ok=True)
    opened: IO[bytes] = fs.open(path, "wb")
    return opened


def _line(row: BatchRow, settings: BatchSettings) -> bytes:
    """A row as a request without a task; one that cannot be used stays as an error."""
    fields: dict[str, object] = dict(row.fields)
    if row.answers and settings.answers_field is not None:
        fields[settings.answers_field] = list(row.answers)
    value = {"id": row.id, "fields": fields} if row.id is not None else {"fields": fields}
    return f"{json.dumps(value, ensure_ascii=False)}\n".encode()


def _ignore(_: PromptRef) -> None:
    """References are looked at with the rows."""
