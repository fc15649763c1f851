"""Aliases, approvals, and what is said of versions."""

from collections.abc import Mapping, Sequence
from datetime import datetime

from orchestrator.domain.errors import InvalidInput
from orchestrator.domain.gate import Gate
from orchestrator.domain.prompt_version import (
    Approval,
    DescriptionChange,
    Promotion,
    PromptRef,
    PromptVersion,
)
from orchestrator.sdk.verbs import PRODUCTION, Verbs


class PromotionVerbs(Verbs):
    """Aliases moved, rolled back and taken away, versions approved and described."""

    def history(
        self, task: str, alias: str | None = None, limit: int | None = None
    ) -> list[Promotion]:
        """The moves of a task's aliases, newest first."""
        return list(self.parts.prompts.history(task, alias, limit))

    def at(self, moment: datetime, tasks: Sequence[str] = ()) -> list[Promotion]:
        """Where each alias (of these tasks, or of all) pointed at `moment`, an aware time, as the
        move that had brought it there, or (`to_version` None) taken it away. Raises UnknownName."""
        if moment.tzinfo is None:
            raise InvalidInput(f"{moment} has no time zone", "Give an aware datetime.")
        return list(self.parts.prompts.at(moment, tasks))

    def promote(
        self,
        ref: str,
        alias: str = PRODUCTION,
        when: str | None = None,
        reason: str = "",
        force: bool = False,
        if_current: int | None = None,
    ) -> Promotion:
        """Move `alias` to a version behind a gate: `when`, else the one in the version's spec for
        this alias. Raises GateRefused, with both values; `force` moves it all the same. Raises
        AliasMoved if it is not at the version `if_current` (0: no alias). One that points there
        already stays: its last move is returned."""
        from orchestrator.registry.own_spec import own_gate

        version = self.prompt(ref)
        try:
            gate = Gate.parse(when) if when else own_gate(self.parts.jobs, version, alias)
        except ValueError as error:
            raise InvalidInput(str(error)) from error
        target = PromptRef(version.task, version.number)
        return self.parts.prompts.promote(
            target, alias, self.parts.actor, reason, gate, force, if_current
        )

    def rollback(
        self,
        task: str,
        alias: str = PRODUCTION,
        reason: str = "",
        if_current: int | None = None,
    ) -> Promotion:
        """Move `alias` back to the version before its last promotion; the next rollback goes one
        further back. Raises InvalidInput if there is nothing to go back to, or AliasMoved."""
        return self.parts.prompts.rollback(task, alias, self.parts.actor, reason, if_current)

    def unset(
        self,
        task: str,
        alias: str = PRODUCTION,
        reason: str = "",
        if_current: int | None = None,
    ) -> Promotion:
        """Take `alias` away; a rollback brings it back. One that is taken away stays so: its last
        move is returned. Raises UnknownName for what never was one, or AliasMoved."""
        return self.parts.prompts.unset(task, alias, self.parts.actor, reason, if_current)

    def approve(self, ref: str, note: str = "") -> list[Approval]:
        """Approve a version that somebody else trained; return its approvals."""
        return list(self.parts.prompts.approve(PromptRef.parse(ref), self.parts.actor, note))

    def withdraw_approval(self, ref: str, note: str = "") -> list[Approval]:
        return list(self.parts.prompts.withdraw(PromptRef.parse(ref), self.parts.actor, note))

    def approvals(self, ref: str) -> list[Approval]:
        """The approvals of a version in force, oldest first."""
        return list(self.parts.prompts.approvals(PromptRef.parse(ref)))

    def describe(self, ref: str, description: str) -> PromptVersion:
        """Set a version's description ("": none); the old one stays in its changes."""
        return self.parts.prompts.describe(PromptRef.parse(ref), self.parts.actor, description)

    def tag(self, ref: str, tags: Mapping[str, str | None]) -> PromptVersion:
        """Set a version's tags, or (None) remove them; the others stay."""
        return self.parts.prompts.describe(PromptRef.parse(ref), self.parts.actor, tags=tags)

    def description_changes(self, ref: str) -> list[DescriptionChange]:
        """Who changed a version's description and tags, newest first."""
        return list(self.parts.prompts.changes(PromptRef.parse(ref)))
