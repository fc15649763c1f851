"""Approvals: people other than its author stand for a version; gates count them.

Rows are never changed: of one person's rows for a version the newest counts. The author is who
submitted the job that made the version; an approval by the author is refused, and never counted.
"""

from typing import Any

from sqlalchemy import Connection, Row, insert, select

from orchestrator.domain.errors import InvalidInput
from orchestrator.domain.prompt_version import Approval, PromptVersion
from orchestrator.registry.dialect import now, plain_text
from orchestrator.registry.tables import approvals, jobs
from orchestrator.registry.version_rows import id_of


def add_approval(
    connection: Connection, version: PromptVersion, actor: str, note: str
) -> list[Approval]:
    """Approve the version of a locked task, once for each actor; return all its approvals."""
    actor = plain_text(actor)
    if actor == find_author(connection, version):
        raise InvalidInput(
            f"{actor} is the author of {version.ref}: an approval comes from somebody else",
            f"Ask a colleague to run `tutti prompts approve {version.ref}`.",
        )
    if actor not in {each.actor for each in fetch_approvals(connection, version)}:
        _insert(connection, version, actor, note, is_given=True)
    return fetch_approvals(connection, version)


def withdraw_approval(
    connection: Connection, version: PromptVersion, actor: str, note: str
) -> list[Approval]:
    """Take the actor's approval back; return those that are left."""
    actor = plain_text(actor)
    given = fetch_approvals(connection, version)
    if actor not in {each.actor for each in given}:
        names = ", ".join(each.actor for each in given) or "nobody"
        raise InvalidInput(
            f"{actor} has no approval of {version.ref} to withdraw; it is approved by {names}"
        )
    _insert(connection, version, actor, note, is_given=False)
    return fetch_approvals(connection, version)


def fetch_approvals(connection: Connection, version: PromptVersion) -> list[Approval]:
    """The approvals in force, oldest first."""
    query = (
        select(approvals).where(approvals.c.version_id == id_of(version)).order_by(approvals.c.id)
    )
    newest: dict[str, Row[Any]] = {}
    for row in connection.execute(query):
        newest.pop(row.actor, None)
        newest[row.actor] = row
    return [
        Approval(row.actor, row.note, row.approved_at) for row in newest.values() if row.is_given
    ]


def num_approvals(connection: Connection, version: PromptVersion) -> int:
    """How many people other than the author approve of the version."""
    author = find_author(connection, version)
    return sum(each.actor != author for each in fetch_approvals(connection, version))


def find_author(connection: Connection, version: PromptVersion) -> str | None:
    """Who submitted the version's job; None for one that no job made."""
    if version.lineage.author is not None:
        return plain_text(version.lineage.author)
    query = select(jobs.c.owner).where(jobs.c.id == version.lineage.job)
    return connection.execute(query).scalar_one_or_none()


def _insert(
    connection: Connection, version: PromptVersion, actor: str, note: str, is_given: bool
) -> None:
    values = {
        "version_id": id_of(version),
        "actor": actor,
        "is_given": is_given,
        "note": note,
        "approved_at": now(),
    }
    connection.execute(insert(approvals).values(values))
