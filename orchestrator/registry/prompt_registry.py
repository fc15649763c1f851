"""The registry of prompts: immutable versions, and aliases that move behind gates, with history.

A version's number is its place in its task's history: 1, 2, 3, without gaps, never used again.
"""

from orchestrator.domain.errors import GateRefused
from orchestrator.domain.gate import Gate
from orchestrator.domain.job import Lease
from orchestrator.domain.prompt_version import Promotion, PromptRef, PromptVersion, TrainedPrompt
from orchestrator.domain.task_spec import PromoteSpec
from orchestrator.registry.completion import Completion, complete_job
from orchestrator.registry.database import Database
from orchestrator.registry.names import require_alias
from orchestrator.registry.promotion import (
    fetch_promotions,
    find_incumbent,
    judge,
    move_alias,
)
from orchestrator.registry.tables import prompt_versions
from orchestrator.registry.version_rows import (
    add_version,
    fetch_versions,
    find_version,
    lock_task,
    pointed_at,
)

Versions = list[PromptVersion]
Promotions = list[Promotion]


class PromptRegistry:
    """Every read and write of versions and aliases."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def register(self, trained: TrainedPrompt) -> tuple[PromptVersion, bool]:
        """The version with this content, and whether it is new."""
        with self._database.write() as connection:
            return add_version(connection, trained)

    def complete(
        self, lease: Lease, trained: TrainedPrompt, promote: PromoteSpec | None, actor: str
    ) -> Completion:
        """Register the result of a running job, promote it if its gate holds, and end the job.

        All or nothing; raises StaleLease when the job is no longer the lease's. Content that is a
        version already gets no new one: that version, with the metrics it was registered with, is
        promoted as a new one would be, unless the alias points at it already.
        """
        with self._database.write() as connection:
            return complete_job(connection, lease, trained, promote, actor)

    def promote(
        self,
        ref: PromptRef,
        alias: str,
        actor: str,
        reason: str = "",
        gate: Gate | None = None,
        force: bool = False,
    ) -> Promotion:
        """Move `alias` to the version `ref` means; if it is there already, return its last move.

        Raises GateRefused with each failed condition; `force` moves all the same and the reason
        says so. Raises UnknownName or InvalidInput for what cannot be promoted.
        """
        require_alias(alias)
        with self._database.write() as connection:
            lock_task(connection, ref.task)
            version = find_version(connection, ref)
            incumbent = find_incumbent(connection, ref.task, alias)
            if incumbent.number == version.number:
                return fetch_promotions(connection, ref.task, alias)[0]
            refusals = judge(gate, version, incumbent)
            if refusals and not force:
                raise _refused(version, alias, refusals)
            if refusals:
                reason = f"{reason} (forced although {'; '.join(refusals)})".lstrip()
            return move_alias(connection, version, incumbent, actor=actor, reason=reason, gate=gate)

    def resolve(self, ref: PromptRef) -> PromptVersion:
        """The version of a number, an alias, or the newest; UnknownName says what exists."""
        with self._database.read() as connection:
            return find_version(connection, ref)

    def history(self, task: str, alias: str | None = None) -> Promotions:
        """The moves of a task's aliases, newest first."""
        with self._database.read() as connection:
            return fetch_promotions(connection, task, alias)

    def list(self, task: str | None = None, alias: str | None = None, limit: int = 100) -> Versions:
        """Versions, newest first; with `alias`, those it points at."""
        conditions = []
        if task is not None:
            conditions.append(prompt_versions.c.task == task)
        if alias is not None:
            conditions.append(prompt_versions.c.id.in_(pointed_at(alias)))
        with self._database.read() as connection:
            return fetch_versions(connection, *conditions, limit=limit)


def _refused(version: PromptVersion, alias: str, refusals: tuple[str, ...]) -> GateRefused:
    return GateRefused(
        f"{version.ref} was not promoted to {alias}: {'; '.join(refusals)}",
        "Train a better version, change the gate, or pass --force to move the alias anyway.",
    )
