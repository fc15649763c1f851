"""The log of a job: rows while it lives, an artifact (JSONL) once it has ended.

Reading puts the two together, so it does not matter which of them has a line, or both.
"""

import json
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from orchestrator.domain.digest import short
from orchestrator.domain.errors import IntegrityError, TuttiError
from orchestrator.domain.job import LogLine
from orchestrator.registry.errors import DatabaseUnavailable

if TYPE_CHECKING:
    from orchestrator.artifacts.artifact_store import ArtifactStore
    from orchestrator.registry.job_queue import JobQueue

LogLines = list[LogLine]


def read_log(queue: "JobQueue", store: "ArtifactStore", job_id: str, after: int = 0) -> LogLines:
    """A job's lines with numbers above `after`, in order. Needs no cluster. Raises IntegrityError
    or StoreUnavailable where what was archived cannot be had."""
    rows = queue.log(job_id, after)
    digest = queue.get(job_id).log
    stored = _decode(store.get_bytes(digest), digest) if digest else []
    lines = {line.number: line for line in (*stored, *rows) if line.number > after}
    return [lines[number] for number in sorted(lines)]


def archive_logs(queue: "JobQueue", store: "ArtifactStore", limit: int = 100) -> int:
    """Move the logs of up to `limit` ended jobs from rows to artifacts; return of how many. What
    is wrong with one job is raised once the others are done."""
    faults: list[str] = []
    ended = queue.unarchived(limit)
    for job_id in ended:
        try:
            _archive(queue, store, job_id)
        except DatabaseUnavailable:
            raise
        except TuttiError as error:
            faults.append(f"job {short(job_id)}: {error}")
    if faults:
        raise TuttiError("\n".join(faults))
    return len(ended)


def _archive(queue: "JobQueue", store: "ArtifactStore", job_id: str) -> None:
    before = queue.get(job_id).log
    lines = read_log(queue, store, job_id)
    digest = store.put_bytes(_encode(lines)).digest
    is_kept = queue.archive(job_id, digest, lines[-1].number)
    if is_kept and before is not None and before != digest:
        store.discard(before)


def _encode(lines: Sequence[LogLine]) -> bytes:
    return "".join(
        json.dumps(
            {"number": line.number, "at": line.at.isoformat(), "text": line.text},
            ensure_ascii=False,
        )
        + "\n"
        for line in lines
    ).encode()


def _decode(data: bytes, digest: str) -> LogLines:
    try:
        values = [json.loads(line) for line in data.decode().splitlines()]
        return [
            LogLine(value["number"], datetime.fromisoformat(value["at"]), value["text"])
            for value in values
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"the artifact {short(digest)} is not the log of a job") from error
