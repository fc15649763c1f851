"""The registry of prompts: immutable versions, and aliases that move behind gates, with history.

A version's number is its place in its task's history: 1, 2, 3, without gaps, never used again.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from types import MappingProxyType

from sqlalchemy import Connection

from orchestrator.domain.gate import Gate
from orchestrator.domain.job import Lease
from orchestrator.domain.prompt_version import (
    Approval,
    DescriptionChange,
    Promotion,
    PromptRef,
    PromptVersion,
    TrainedPrompt,
)
from orchestrator.domain.task_spec import PromoteSpec
from orchestrator.domain.version_filter import Comparison, VersionFilter, all_of
from orchestrator.registry.approvals import add_approval, fetch_approvals, withdraw_approval
from orchestrator.registry.completion import Completion, complete_job
from orchestrator.registry.database import Database
from orchestrator.registry.names import require_alias
from orchestrator.registry.promotion import (
    Incumbent,
    find_incumbent,
    judge,
    move_alias,
    overrule,
    remove_alias,
    require_current,
)
from orchestrator.registry.promotion_history import (
    fetch_moves_at,
    fetch_promotions,
    find_before,
    find_move,
)
from orchestrator.registry.tables import prompt_versions
from orchestrator.registry.version_description import change_description, fetch_changes
from orchestrator.registry.version_intake import add_version, add_versions
from orchestrator.registry.version_page import page_of_ids, superseded_ids
from orchestrator.registry.version_rows import (
    fetch_versions,
    find_id,
    find_version,
    lock_task,
    unknown,
)

Versions = list[PromptVersion]
Promotions = list[Promotion]
Approvals = list[Approval]
Changes = list[DescriptionChange]


class PromptRegistry:
    """Every read and write of versions and aliases."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def register(self, trained: TrainedPrompt) -> tuple[PromptVersion, bool]:
        """The version with this content, and whether it is new."""
        with self._database.write() as connection:
            return add_version(connection, trained)

    def register_all(self, trained: Sequence[TrainedPrompt]) -> list[tuple[PromptVersion, bool]]:
        """Each as `register`, in one transaction: all of them or none."""
        with self._database.write() as connection:
            return add_versions(connection, trained)

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
        if_current: int | None = None,
    ) -> Promotion:
        """Move `alias` to the version `ref` means; if it is there already, return its last move.

        `if_current`: move it only from this version (0: only if it is no alias), else raise
        AliasMoved. Raises GateRefused with each failed condition; `force` moves all the same, and
        the promotion says what it overrode. Raises UnknownName or InvalidInput for what cannot be
        promoted.
        """
        require_alias(alias)
        with self._locked(ref.task) as connection:
            version = find_version(connection, ref)
            incumbent = find_incumbent(connection, ref.task, alias)
            if incumbent.number == version.number:
                return find_move(connection, ref.task, alias, incumbent.generation)
            require_current(connection, incumbent, if_current)
            refusals = judge(connection, gate, version, incumbent)
            overrode = overrule(version, alias, refusals, force)
            return move_alias(
                connection,
                version,
                incumbent,
                actor=actor,
                reason=reason,
                gate=gate,
                overrode=overrode,
            )

    def rollback(
        self, task: str, alias: str, actor: str, reason: str = "", if_current: int | None = None
    ) -> Promotion:
        """Move `alias` back to where it pointed before its last promotion that is still in force:
        each further rollback goes one promotion further back (promotion_history.py).

        It is a move of its own, behind no gate: that version was promoted before. Raises
        UnknownName, AliasMoved as `promote`, and InvalidInput if there is nothing to go back to.
        """
        with self._locked(task) as connection:
            incumbent = self._find_moved(connection, task, alias)
            require_current(connection, incumbent, if_current)
            number, restores = find_before(connection, task, alias, incumbent.generation)
            version = find_version(connection, PromptRef(task, number))
            return move_alias(
                connection, version, incumbent, actor=actor, reason=reason, restores=restores
            )

    def unset(
        self, task: str, alias: str, actor: str, reason: str = "", if_current: int | None = None
    ) -> Promotion:
        """Take `alias` away; if it is none any more, return its last move.

        A move of its own, behind no gate: a rollback takes it back, and a promotion makes the alias
        again. Raises UnknownName for what never was one, and AliasMoved as `promote`.
        """
        with self._locked(task) as connection:
            incumbent = self._find_moved(connection, task, alias)
            if incumbent.version is None:
                return find_move(connection, task, alias, incumbent.generation)
            require_current(connection, incumbent, if_current)
            return remove_alias(connection, incumbent, actor=actor, reason=reason)

    def history(self, task: str, alias: str | None = None, limit: int | None = None) -> Promotions:
        """The moves of a task's aliases, newest first."""
        with self._database.read() as connection:
            return fetch_promotions(connection, task, alias, limit)

    def at(self, moment: datetime, tasks: Sequence[str] = ()) -> Promotions:
        """Where each alias (of these tasks, or of all) pointed at `moment`, as the move that had
        brought it there, or had taken it away. Raises UnknownName."""
        with self._database.read() as connection:
            for task in tasks:
                find_version(connection, PromptRef(task, None))
            return fetch_moves_at(connection, moment, tasks)

    def approve(self, ref: PromptRef, actor: str, note: str = "") -> Approvals:
        """Approve a version, once for each actor; return its approvals. Raises InvalidInput for its
        author."""
        with self._locked(ref.task) as connection:
            return add_approval(connection, find_version(connection, ref), actor, note)

    def withdraw(self, ref: PromptRef, actor: str, note: str = "") -> Approvals:
        """Take an approval back; return those that are left."""
        with self._locked(ref.task) as connection:
            return withdraw_approval(connection, find_version(connection, ref), actor, note)

    def approvals(self, ref: PromptRef) -> Approvals:
        """The approvals of a version in force, oldest first."""
        with self._database.read() as connection:
            return fetch_approvals(connection, find_version(connection, ref))

    def describe(
        self,
        ref: PromptRef,
        actor: str,
        description: str | None = None,
        tags: Mapping[str, str | None] = MappingProxyType({}),
    ) -> PromptVersion:
        """Set a version's description, and set or (None) remove tags; what is not given stays."""
        with self._locked(ref.task) as connection:
            version = find_version(connection, ref)
            change_description(connection, version, actor, description, tags)
            return find_version(connection, PromptRef(version.task, version.number))

    def changes(self, ref: PromptRef) -> Changes:
        """Who changed a version's description and tags, newest first."""
        with self._database.read() as connection:
            return fetch_changes(connection, find_version(connection, ref))

    def resolve(self, ref: PromptRef) -> PromptVersion:
        """The version of a number, an alias, or the newest; UnknownName says what exists."""
        with self._database.look() as connection:
            return find_version(connection, ref)

    def list(
        self,
        task: str | None = None,
        alias: str | None = None,
        limit: int = 100,
        where: VersionFilter | None = None,
        before: PromptRef | None = None,
    ) -> Versions:
        """Versions, newest first; with `alias`, those it points at. The next page is the one
        `before` the last version of this one, and costs the same."""
        named = [Comparison(field, "=", name) for field, name in _named(task, alias)]
        asked = all_of((*named, *([] if where is None else [where])))
        with self._database.read() as connection:
            start = None if before is None else find_id(connection, before)
            ids = page_of_ids(connection, asked, start, limit)
            return fetch_versions(connection, prompt_versions.c.id.in_(ids))

    def list_superseded(self, limit: int = 100) -> Versions:
        """The tasks' newest versions whose base's name means another base now, newest first."""
        with self._database.read() as connection:
            stale = prompt_versions.c.id.in_(superseded_ids(connection, limit))
            return fetch_versions(connection, stale)

    def _find_moved(self, connection: Connection, task: str, alias: str) -> Incumbent:
        """What an alias that has ever moved points at; raise UnknownName for another."""
        incumbent = find_incumbent(connection, task, require_alias(alias))
        if incumbent.generation == 0:
            raise unknown(connection, PromptRef(task, alias))
        return incumbent

    @contextmanager
    def _locked(self, task: str) -> Iterator[Connection]:
        """A transaction in which nobody else changes the task's versions, aliases or approvals."""
        with self._database.write() as connection:
            lock_task(connection, task)
            yield connection


def _named(task: str | None, alias: str | None) -> Iterator[tuple[str, str]]:
    if task is not None:
        yield "task", task
    if alias is not None:
        yield "alias", alias
