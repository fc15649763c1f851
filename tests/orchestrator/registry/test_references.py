from collections.abc import Callable

import pytest
from sqlalchemy import JSON, Column, Connection, Table, insert

from orchestrator.domain.digest import digest_json
from orchestrator.domain.job import Lease
from orchestrator.domain.prompt_version import TrainedPrompt
from orchestrator.registry.database import Database
from orchestrator.registry.dialect import PlainText, now
from orchestrator.registry.job_queue import JobQueue
from orchestrator.registry.prompt_registry import PromptRegistry
from orchestrator.registry.references import References
from orchestrator.registry.tables import jobs, metadata, outbox, quotas

Trained = Callable[..., TrainedPrompt]


def test_versions_and_jobs_name_what_they_need(
    database: Database,
    registry: PromptRegistry,
    queue: JobQueue,
    trained: Trained,
    running: Callable[..., Lease],
) -> None:
    version = registry.register(trained())[0]
    lease = running("other")
    queue.checkpoint(lease, checkpoint := digest_json("checkpoint"))
    found = {(each.by, each.role): each for each in References(database).list()}
    encoder = version.artifacts["encoder"]
    named = found[version.ref, "encoder"]
    assert (named.digest, named.num_bytes) == (encoder.digest, encoder.num_bytes)
    job = f"job {lease.job_id}"
    assert found[job, "checkpoint"].digest == checkpoint
    assert found[job, "train data"].digest == digest_json("train")
    assert (job, "log") not in found
    assert {each.digest for each in found.values()} <= References(database).digests()


@pytest.mark.parametrize(
    "text", [digest_json(1), f"x {digest_json(1)}, y", f'{{"deep": ["{digest_json(1)}"]}}']
)
def test_a_digest_is_seen_wherever_it_stands(database: Database, text: str) -> None:
    with database.write() as connection:
        connection.execute(insert(quotas).values(owner=text, share=1.0))
        row = {"kind": "x", "payload": {"a": [text]}, "attempts": 0, "created_at": now()}
        connection.execute(insert(outbox).values(row))
    assert References(database).digests() == {digest_json(1)}


def test_other_hex_digits_are_no_digest(database: Database) -> None:
    with database.write() as connection:
        for owner in ("a" * 65, "A" * 64, "a" * 63):
            connection.execute(insert(quotas).values(owner=owner, share=1.0))
    assert References(database).digests() == frozenset()


def test_every_column_of_text_is_read(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """No table is forgotten: the scan asks for each column that can hold a digest."""
    asked: set[str] = set()
    execute = Connection.execute

    def note(self: Connection, statement: object, *args: object, **kw: object) -> object:
        asked.add(str(statement).replace('"', ""))
        return execute(self, statement, *args, **kw)  # type: ignore[call-overload]

    monkeypatch.setattr(Connection, "execute", note)
    References(database).digests()
    for table in metadata.tables.values():
        for column in filter(_holds_text, table.columns):
            assert any(f"{table.name}.{column.name}" in text for text in asked), column
    assert _holds_text(jobs.c.checkpoint)
    assert _holds_text(jobs.c.submission)


def _holds_text(column: Column[object]) -> bool:
    return isinstance(column.type, JSON | PlainText) and isinstance(column.table, Table)
