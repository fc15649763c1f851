"""Approvals: one for each person, never the author's, withdrawn by a row of its own."""

from collections.abc import Callable

import pytest
from sqlalchemy import func, insert, select

from orchestrator.domain.errors import InvalidInput, UnknownName
from orchestrator.domain.job import Lease
from orchestrator.domain.prompt_version import Approval, PromptRef, TrainedPrompt
from orchestrator.registry.approvals import num_approvals
from orchestrator.registry.database import Database
from orchestrator.registry.dialect import now
from orchestrator.registry.prompt_registry import PromptRegistry
from orchestrator.registry.tables import approvals, prompt_versions

REF = PromptRef("color", 1)


@pytest.fixture
def made(
    registry: PromptRegistry, trained: Callable[..., TrainedPrompt], running: Callable[..., Lease]
) -> PromptRegistry:
    """color@1 by ann."""
    registry.complete(running(), trained(), None, "controller")
    return registry


def actors(given: list[Approval]) -> list[str]:
    return [approval.actor for approval in given]


def num_rows(database: Database) -> int:
    with database.read() as connection:
        return connection.execute(select(func.count()).select_from(approvals)).scalar_one()


def test_people_approve_once_each(made: PromptRegistry, database: Database) -> None:
    assert made.approvals(REF) == []
    (first,) = made.approve(REF, "bob", "looks right")
    assert (first.actor, first.note) == ("bob", "looks right")
    assert made.approve(REF, "bob", "again") == [first]
    assert actors(made.approve(PromptRef("color", None), "cid")) == ["bob", "cid"]
    assert num_rows(database) == 2


def test_author_cannot_approve(made: PromptRegistry, database: Database) -> None:
    with pytest.raises(InvalidInput, match=r"ann is the author of color@1: .* somebody else"):
        made.approve(REF, "ann")
    assert num_rows(database) == 0


def test_approval_of_the_author_past_the_program_is_not_counted(
    made: PromptRegistry, database: Database
) -> None:
    made.approve(REF, "bob")
    version = made.resolve(REF)
    with database.write() as connection:
        version_id = connection.execute(select(prompt_versions.c.id)).scalar_one()
        row = {"version_id": version_id, "actor": "ann", "is_given": True, "note": ""}
        connection.execute(insert(approvals).values(**row, approved_at=now()))
        assert num_approvals(connection, version) == 1


def test_version_without_a_job_has_no_author(
    registry: PromptRegistry, trained: Callable[..., TrainedPrompt]
) -> None:
    registry.register(trained())
    assert actors(registry.approve(REF, "ann")) == ["ann"]


def test_withdrawn_approval_is_gone_and_can_be_given_again(
    made: PromptRegistry, database: Database
) -> None:
    made.approve(REF, "bob")
    made.approve(REF, "cid")
    assert actors(made.withdraw(REF, "bob", "it stammers")) == ["cid"]
    with pytest.raises(InvalidInput, match=r"bob has no approval .* it is approved by cid"):
        made.withdraw(REF, "bob")
    assert actors(made.approve(REF, "bob")) == ["cid", "bob"]
    assert num_rows(database) == 4  # every step is kept


def test_approval_of_an_unknown_version_is_refused(made: PromptRegistry) -> None:
    with pytest.raises(UnknownName, match="color has no version 9"):
        made.approve(PromptRef("color", 9), "bob")
