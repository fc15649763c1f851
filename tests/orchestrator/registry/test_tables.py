"""Versions, promotions, approvals and changes of descriptions are history: the database itself
refuses to change them."""

from collections.abc import Callable

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError as SqlIntegrityError

from orchestrator.domain.prompt_version import PromptRef, TrainedPrompt
from orchestrator.registry.database import Database
from orchestrator.registry.prompt_registry import PromptRegistry

CHANGES = [
    "UPDATE prompt_versions SET digest = 'x'",
    "UPDATE prompt_versions SET metrics = '{}' WHERE number = 1",
    "DELETE FROM prompt_versions",
    "UPDATE promotions SET actor = 'x'",
    "DELETE FROM promotions WHERE generation = 1",
    "UPDATE approvals SET is_given = (1 = 0)",
    "DELETE FROM approvals",
    "UPDATE description_changes SET old = 'x'",
    "DELETE FROM description_changes",
]


@pytest.fixture
def promoted(registry: PromptRegistry, trained: Callable[..., TrainedPrompt]) -> PromptRegistry:
    registry.register(trained())
    registry.promote(PromptRef("color", 1), "production", "ann")
    registry.approve(PromptRef("color", 1), "bob")
    registry.describe(PromptRef("color", 1), "ann", "first")
    return registry


@pytest.mark.usefixtures("promoted")
@pytest.mark.parametrize("change", CHANGES)
def test_history_cannot_be_changed(database: Database, change: str) -> None:
    verb = change.split()[0]
    with (
        pytest.raises(SqlIntegrityError, match=f"is append-only: {verb} is refused"),
        database.write() as connection,
    ):
        connection.execute(text(change))


@pytest.mark.usefixtures("promoted")
@pytest.mark.parametrize(
    "table", ["prompt_versions", "promotions", "approvals", "description_changes"]
)
def test_history_cannot_be_replaced_or_emptied(
    database: Database, dialect: str, table: str
) -> None:
    change = f"TRUNCATE {table} CASCADE"
    if dialect == "sqlite":
        change = f"INSERT OR REPLACE INTO {table} SELECT * FROM {table}"
    with (
        pytest.raises(SqlIntegrityError, match=r"is append-only: (REPLACE|TRUNCATE) is refused"),
        database.write() as connection,
    ):
        connection.execute(text(change))


@pytest.mark.usefixtures("promoted")
def test_refused_change_leaves_the_row_as_it_was(
    database: Database, registry: PromptRegistry
) -> None:
    before = registry.resolve(PromptRef("color", 1)), registry.history("color")
    with pytest.raises(SqlIntegrityError), database.write() as connection:
        connection.execute(text(CHANGES[0]))
    assert (registry.resolve(PromptRef("color", 1)), registry.history("color")) == before
