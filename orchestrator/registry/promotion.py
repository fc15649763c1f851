"""Alias moves: judged against the version the alias points at, counted, and recorded for ever. An
alias that is taken away moves too; its next generation goes on from there.

Every function here runs in a transaction that has the task locked, so the incumbent cannot change
between the judgement and the move; the update is compare-and-set on the generation all the same.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, delete, insert, select, update

from orchestrator.domain.errors import AliasMoved, GateRefused
from orchestrator.domain.gate import Gate
from orchestrator.domain.gate_facts import facts_of
from orchestrator.domain.gate_term import Value
from orchestrator.domain.prompt_version import Promotion, PromptVersion
from orchestrator.registry.approvals import num_approvals
from orchestrator.registry.dialect import database_time, now
from orchestrator.registry.outbox import post
from orchestrator.registry.promotion_history import COLUMNS, find_move, last_generation
from orchestrator.registry.tables import aliases, promotions, prompt_versions
from orchestrator.registry.version_rows import fetch_versions, id_of


@dataclass(frozen=True)
class Incumbent:
    """What an alias points at now: nothing if it never was one (generation 0) or is none now."""

    task: str
    alias: str
    generation: int = 0
    version: PromptVersion | None = None

    @property
    def number(self) -> int | None:
        return self.version.number if self.version else None


def find_incumbent(connection: Connection, task: str, alias: str) -> Incumbent:
    """What `alias` of the locked `task` points at."""
    query = select(aliases).where(aliases.c.task == task, aliases.c.alias == alias)
    row = connection.execute(query).one_or_none()
    if row is None:
        return Incumbent(task, alias, last_generation(connection, task, alias))
    (version,) = fetch_versions(connection, prompt_versions.c.id == row.version_id)
    return Incumbent(task, alias, row.generation, version)


def require_current(connection: Connection, incumbent: Incumbent, if_current: int | None) -> None:
    """Raise AliasMoved unless the alias points at the version the caller believes it does (0: at
    none). It says where the alias is, who moved it and when. Without a belief nothing is asked."""
    if if_current is None or if_current == (incumbent.number or 0):
        return
    ref = f"{incumbent.task}@{incumbent.alias}"
    believed = f"at version {if_current}" if if_current else "to be no alias"
    if incumbent.generation == 0:
        raise AliasMoved(
            f"{ref} was not moved: it is no alias yet, and was believed {believed}",
            "Leave --if-current out, or give 0, to point it at its first version.",
        )
    last = find_move(connection, incumbent.task, incumbent.alias, incumbent.generation)
    state, how = "is no alias", "taken away"
    if incumbent.version is not None:
        state, how = f"points at {incumbent.version.ref}", "moved there"
    raise AliasMoved(
        f"{ref} was not moved: it {state} since {last.promoted_at:%Y-%m-%d %H:%M:%S} UTC, {how} by "
        f"{last.actor}, and was believed {believed}",
        f"See `tutti prompts history {incumbent.task}`; if the move is still right, give "
        f"--if-current {incumbent.number or 0}.",
    )


def judge(
    connection: Connection, gate: Gate | None, version: PromptVersion, incumbent: Incumbent
) -> tuple[str, ...]:
    """Why the gate refuses this move, with both values; empty when it does not."""
    if gate is None:
        return ()
    rival = _facts(connection, incumbent.version) if incumbent.version else None
    verdict = gate.judge(_facts(connection, version), rival)
    if verdict.passed:
        return ()
    return verdict.failures or (f"{gate.source} is false",)


def overrule(
    version: PromptVersion, alias: str, refusals: tuple[str, ...], force: bool
) -> str | None:
    """What `force` overrides, for the audit; None where nothing refuses. Without `force`, raise
    GateRefused. The one place where a gate is overridden: who may is to be asked here."""
    if not refusals:
        return None
    if not force:
        raise GateRefused(
            f"{version.ref} was not promoted to {alias}: {'; '.join(refusals)}",
            "Train a better version, change the gate, or pass --force to move the alias anyway.",
        )
    return "; ".join(refusals)


def move_alias(
    connection: Connection,
    version: PromptVersion,
    incumbent: Incumbent,
    *,
    actor: str,
    reason: str,
    gate: Gate | None = None,
    overrode: str | None = None,
    restores: int | None = None,
) -> Promotion:
    """Point the alias at `version`: the alias, its audit row and the outbox row."""
    _point(connection, version, incumbent)
    said = {
        "actor": actor,
        "reason": reason,
        "gate": gate.source if gate else None,
        "overrode": overrode,
        "restores": restores,
    }
    moved = _record(connection, incumbent, version.number, said)
    named = {"task": version.task, "alias": incumbent.alias}
    post(connection, "alias_moved", {**named, "number": version.number})
    return moved


def remove_alias(
    connection: Connection, incumbent: Incumbent, *, actor: str, reason: str
) -> Promotion:
    """Take the alias away from the version it points at: its row, its audit row and the outbox
    row."""
    removed = connection.execute(delete(aliases).where(*_is_unmoved(incumbent)))
    assert removed.rowcount == 1, "the alias moved although its task was locked"
    moved = _record(connection, incumbent, None, {"actor": actor, "reason": reason})
    post(connection, "alias_removed", {"task": incumbent.task, "alias": incumbent.alias})
    return moved


def _facts(connection: Connection, version: PromptVersion) -> dict[str, Value]:
    age = database_time(connection) - version.created_at
    return facts_of(version, age.total_seconds(), num_approvals(connection, version))


def _record(
    connection: Connection, incumbent: Incumbent, to_version: int | None, said: Mapping[str, Any]
) -> Promotion:
    """The audit row of a move."""
    record = {
        "task": incumbent.task,
        "alias": incumbent.alias,
        "to_version": to_version,
        "from_version": incumbent.number,
        "generation": incumbent.generation + 1,
        "promoted_at": now(),
        **said,
    }
    row = connection.execute(insert(promotions).values(record).returning(*COLUMNS)).one()
    return Promotion(**row._mapping)


def _point(connection: Connection, version: PromptVersion, incumbent: Incumbent) -> None:
    values = {
        "version_id": id_of(version),
        "generation": incumbent.generation + 1,
        "updated_at": now(),
    }
    if incumbent.version is None:
        key = {"task": version.task, "alias": incumbent.alias}
        connection.execute(insert(aliases).values(**key, **values))
        return
    moved = connection.execute(update(aliases).where(*_is_unmoved(incumbent)).values(values))
    assert moved.rowcount == 1, "the alias moved although its task was locked"


def _is_unmoved(incumbent: Incumbent) -> tuple[ColumnElement[bool], ...]:
    """That the alias is where it was found."""
    return (
        aliases.c.task == incumbent.task,
        aliases.c.alias == incumbent.alias,
        aliases.c.generation == incumbent.generation,
    )
