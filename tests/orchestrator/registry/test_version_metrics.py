"""A version's metrics lie as rows beside it, from its own transaction on, and never change."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import IntegrityError as SqlIntegrityError

from orchestrator.domain.prompt_version import TrainedPrompt
from orchestrator.domain.version_filter import Comparison
from orchestrator.registry import migrate
from orchestrator.registry.database import Database
from orchestrator.registry.prompt_registry import PromptRegistry
from orchestrator.registry.tables import version_metrics

Trained = Callable[..., TrainedPrompt]
NUL, REPLACED = "a\x00", "a\N{REPLACEMENT CHARACTER}"


def rows(database: Database) -> list[tuple[str, int, float]]:
    with database.read() as connection:
        query = select(version_metrics).order_by(*version_metrics.primary_key)
        return [tuple(row) for row in connection.execute(query)]


def test_a_version_has_its_metrics_as_rows(
    database: Database, registry: PromptRegistry, trained: Trained
) -> None:
    metrics = {"loss": 2, "accuracy": 0.25}
    registry.register(replace(trained(), metrics=metrics))
    registry.register(replace(trained(), metrics={"accuracy": 1.0}))  # equal content: no new row
    registry.register(replace(trained(content=1), metrics={}))
    assert [(name, value) for name, _, value in rows(database)] == [("accuracy", 0.25), ("loss", 2)]


def test_metric_names_no_database_can_hold_are_kept_as_near_as_can_be(
    database: Database, registry: PromptRegistry, trained: Trained
) -> None:
    registry.register(replace(trained(), metrics={NUL: 1.0, REPLACED: 2.0, "'; DROP": 3.0}))
    assert [(name, value) for name, _, value in rows(database)] == [
        ("'; DROP", 3.0),
        (REPLACED, 2.0),
    ]
    assert len(registry.list(where=Comparison("metrics", ">", 1.0, NUL))) == 1


@pytest.mark.parametrize("verb", ["UPDATE", "DELETE", "REPLACE"])
def test_metrics_cannot_be_changed(
    database: Database, registry: PromptRegistry, trained: Trained, dialect: str, verb: str
) -> None:
    registry.register(trained())
    before = rows(database)
    change = {
        "UPDATE": "UPDATE version_metrics SET value = 1",
        "DELETE": "DELETE FROM version_metrics",
        "REPLACE": "INSERT OR REPLACE INTO version_metrics SELECT * FROM version_metrics",
    }[verb]
    if verb == "REPLACE" and dialect == "postgres":
        verb, change = "TRUNCATE", "TRUNCATE version_metrics"
    with (
        pytest.raises(SqlIntegrityError, match=f"version_metrics is append-only: {verb}"),
        database.write() as connection,
    ):
        connection.execute(text(change))
    assert rows(database) == before


def test_metrics_of_versions_of_an_older_schema_become_rows(
    empty_url: str, trained: Trained
) -> None:
    migrate.upgrade(empty_url)
    database = Database(empty_url)
    registry = PromptRegistry(database)
    for index in range(5):
        registry.register(replace(trained(content=index), metrics={"loss": index, NUL: 0.5}))
    registry.register(replace(trained(content="none"), metrics={}))
    before = rows(database)
    assert len(before) == 10
    database.close()
    migrate.downgrade(empty_url, "0004")
    with Database(empty_url).read() as connection:
        assert connection.execute(text("SELECT count(*) FROM prompt_versions")).scalar() == 6
    migrate.upgrade(empty_url)
    database = Database.open(empty_url)
    assert rows(database) == before
    found = PromptRegistry(database).list(where=Comparison("metrics", ">=", 3.0, "loss"))
    assert [version.number for version in found] == [5, 4]
    database.close()
