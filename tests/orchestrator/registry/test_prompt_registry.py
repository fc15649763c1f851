"""Versions are immutable and numbered without gaps; aliases move behind gates, one at a time."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import event, text

from orchestrator.domain.errors import GateRefused, InvalidInput, UnknownName
from orchestrator.domain.gate import Gate
from orchestrator.domain.prompt_version import PromptRef, TrainedPrompt
from orchestrator.registry.database import Database
from orchestrator.registry.outbox import Outbox
from orchestrator.registry.prompt_registry import PromptRegistry
from orchestrator.registry.version_intake import add_versions

Trained = Callable[..., TrainedPrompt]
BETTER = Gate.parse("accuracy >= 0.6 and accuracy > incumbent.accuracy")


def register_all(registry: PromptRegistry, trained: Trained, *accuracies: float) -> None:
    for number, accuracy in enumerate(accuracies):
        registry.register(trained(content=number, accuracy=accuracy))


def test_registered_version_is_what_was_trained(registry: PromptRegistry, trained: Trained) -> None:
    given = trained(accuracy=0.25)
    version, created = registry.register(given)
    assert created
    assert (version.ref, version.digest) == ("color@1", given.digest)
    assert (version.config, version.metrics) == (given.config, given.metrics)
    assert version.artifacts == given.artifacts
    assert version.lineage == given.lineage
    assert abs(version.created_at - datetime.now(UTC)) < timedelta(minutes=1)
    assert registry.resolve(PromptRef("color", None)) == version


def test_lineage_names_the_previous_version(registry: PromptRegistry, trained: Trained) -> None:
    register_all(registry, trained, 0.1, 0.2, 0.3)
    versions = registry.list("color")
    assert [(v.number, v.lineage.parent) for v in versions] == [(3, 2), (2, 1), (1, None)]


def test_equal_content_is_the_same_version(registry: PromptRegistry, trained: Trained) -> None:
    version, _ = registry.register(trained(accuracy=0.5))
    assert registry.register(trained(accuracy=0.9)) == (version, False)
    assert registry.register(trained("shape"))[0].number == 1


def test_number_is_never_used_again(
    registry: PromptRegistry, database: Database, trained: Trained
) -> None:
    registry.register(trained())
    with database.write() as connection:
        connection.execute(text("UPDATE tasks SET last_version = 7"))
    assert registry.register(trained(content=1))[0].number == 8


def test_number_of_a_failed_register_is_not_lost(
    registry: PromptRegistry, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(*args: object) -> None:
        raise ZeroDivisionError

    registry.register(trained())
    with monkeypatch.context() as broken:
        broken.setattr("orchestrator.registry.version_intake.post_all", explode)
        with pytest.raises(ZeroDivisionError):
            registry.register(trained(content=1))
    assert registry.register(trained(content=2))[0].number == 2


def test_many_at_once_are_what_they_are_one_by_one(
    registry: PromptRegistry, outbox: Outbox, trained: Trained
) -> None:
    there, _ = registry.register(trained(content=0))
    asked = [trained(content=i % 1500) for i in range(2500)]  # more than fit a statement
    asked[7] = replace(asked[7], task="another")
    added = registry.register_all(asked)
    assert added[0] == (there, False)
    assert [version.number for version, is_new in added if is_new] == [
        *range(2, 8), 1, *range(8, 1501),
    ]  # fmt: skip
    assert [is_new for _, is_new in added[1500:]] == [False] * 7 + [True] + [False] * 992
    for place, (version, _) in enumerate(added):
        assert (version.task, version.digest) == (asked[place].task, asked[place].digest)
        assert version.lineage.parent == (version.number - 1 or None)
        assert version.metrics == asked[place].metrics
    assert registry.register_all(asked) == [(version, False) for version, _ in added]
    assert registry.register_all([]) == []
    assert registry.resolve(PromptRef("another", None)).number == 1
    told = [item.payload for item in outbox.pending(limit=9999)]
    assert [each["number"] for each in told if each["task"] == there.task] == list(range(1, 1501))


@pytest.mark.parametrize("num_contents", [1, 2, 1000])
def test_known_contents_are_found_by_an_index(
    tmp_path: Path, trained: Trained, num_contents: int
) -> None:
    database = Database.open(f"sqlite:///{tmp_path / 'tutti.db'}")
    with database.write() as connection:
        asked: list[tuple[str, object]] = []
        event.listen(
            connection,
            "before_cursor_execute",
            lambda c, cursor, statement, parameters, *rest: asked.append((statement, parameters)),
        )
        add_versions(connection, [trained(content=i) for i in range(num_contents)])
        lookups = [each for each in asked if "JOIN prompt_versions" in each[0]]
        assert lookups
        for statement, parameters in lookups:
            plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
            assert not any(row[-1].startswith("SCAN prompt_versions") for row in plan)
    database.close()


def test_parallel_bulks_over_the_same_tasks_wait_for_each_other_and_never_in_a_circle(
    registry: PromptRegistry, trained: Trained
) -> None:
    names = [f"a{sign}{i}" for sign in ("-", "", ".", "_") for i in range(4)]

    def add(worker: int) -> None:
        order = names[worker:] + names[:worker]
        bulk = [replace(trained(content=worker * 5 + i), task=t) for i in range(5) for t in order]
        registry.register_all(bulk)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(8)))
    for name in names:
        versions = registry.list(name, limit=100)
        assert sorted(version.number for version in versions) == list(range(1, 41))


def test_parallel_registers_number_without_gaps(
    registry: PromptRegistry, outbox: Outbox, trained: Trained
) -> None:
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda i: registry.register(trained(content=i % 12)), range(24)))
    assert sum(created for _, created in results) == 12
    assert sorted({version.number for version, _ in results}) == list(range(1, 13))
    assert [item.payload["number"] for item in outbox.pending()] == list(range(1, 13))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_metric_that_is_no_number_is_refused(
    registry: PromptRegistry, trained: Trained, value: float
) -> None:
    with pytest.raises(InvalidInput, match=r"the metric 'accuracy' is (nan|inf)"):
        registry.register(trained(accuracy=value))
    assert registry.list() == []


def test_alias_moves_and_moves_back_with_history(
    registry: PromptRegistry, trained: Trained
) -> None:
    register_all(registry, trained, 0.5, 0.7)
    first = registry.promote(PromptRef("color", 1), "production", "ann", "first")
    second = registry.promote(PromptRef("color", None), "production", "bob", gate=BETTER)
    back = registry.promote(PromptRef("color", 1), "production", "ann", "rollback")
    assert (first.from_version, first.to_version, first.generation) == (None, 1, 1)
    assert (second.from_version, second.to_version, second.generation) == (1, 2, 2)
    assert (back.from_version, back.to_version, back.generation) == (2, 1, 3)
    assert (second.actor, second.gate, back.reason) == ("bob", BETTER.source, "rollback")
    assert registry.history("color") == [back, second, first]
    assert registry.history("color", "staging") == []
    assert registry.resolve(PromptRef("color", "production")).number == 1


def test_alias_can_be_promoted_to_where_another_points(
    registry: PromptRegistry, trained: Trained
) -> None:
    register_all(registry, trained, 0.5, 0.7)
    registry.promote(PromptRef("color", 1), "staging", "ann")
    assert registry.promote(PromptRef("color", "staging"), "production", "ann").to_version == 1
    assert registry.resolve(PromptRef("color", 1)).aliases == ("production", "staging")
    assert [v.number for v in registry.list(alias="production")] == [1]
    assert registry.list("shape", alias="production") == []


def test_promotion_to_the_same_version_changes_nothing(
    registry: PromptRegistry, outbox: Outbox, trained: Trained
) -> None:
    register_all(registry, trained, 0.5)
    moved = registry.promote(PromptRef("color", 1), "production", "ann")
    num_items = outbox.num_pending()
    assert registry.promote(PromptRef("color", 1), "production", "bob", gate=BETTER) == moved
    assert registry.history("color") == [moved]
    assert outbox.num_pending() == num_items


def test_refused_promotion_says_both_numbers_and_moves_nothing(
    registry: PromptRegistry, outbox: Outbox, trained: Trained
) -> None:
    register_all(registry, trained, 0.75, 0.625)
    registry.promote(PromptRef("color", 1), "production", "ann", gate=BETTER)
    num_items = outbox.num_pending()
    with pytest.raises(GateRefused) as caught:
        registry.promote(PromptRef("color", 2), "production", "ann", gate=BETTER)
    assert "color@2 was not promoted to production" in str(caught.value)
    assert "accuracy > incumbent.accuracy is false: 0.625 against 0.75" in str(caught.value)
    assert "--force" in str(caught.value)
    assert registry.resolve(PromptRef("color", "production")).number == 1
    assert (len(registry.history("color")), outbox.num_pending()) == (1, num_items)


def test_forced_promotion_moves_and_says_what_it_overrode(
    registry: PromptRegistry, trained: Trained
) -> None:
    register_all(registry, trained, 0.75, 0.5)
    registry.promote(PromptRef("color", 1), "production", "ann", gate=BETTER, force=True)
    moved = registry.promote(
        PromptRef("color", 2), "production", "ann", "hotfix", gate=BETTER, force=True
    )
    assert (moved.reason, moved.gate) == ("hotfix", BETTER.source)
    assert moved.overrode == (
        "accuracy >= 0.6 is false: 0.5 against 0.6; "
        "accuracy > incumbent.accuracy is false: 0.5 against 0.75"
    )
    assert registry.history("color")[1].overrode is None  # the gate held: nothing was forced


def test_unknown_references_say_what_exists(registry: PromptRegistry, trained: Trained) -> None:
    with pytest.raises(UnknownName, match="no task 'color'; there is none yet"):
        registry.resolve(PromptRef("color", None))
    register_all(registry, trained, 0.5, 0.7)
    with pytest.raises(UnknownName, match="did you mean 'color'"):
        registry.resolve(PromptRef("colour", None))
    with pytest.raises(UnknownName, match="there are color"):
        registry.promote(PromptRef("xyz", 1), "production", "ann")
    with pytest.raises(UnknownName, match="color has no version 3; it has 1 to 2"):
        registry.promote(PromptRef("color", 3), "production", "ann")
    with pytest.raises(
        UnknownName, match=r"'production'; there is none yet\n.*tutti prompts promote color@2"
    ):
        registry.resolve(PromptRef("color", "production"))
    registry.promote(PromptRef("color", 1), "production", "ann")
    with pytest.raises(UnknownName, match="did you mean 'production'"):
        registry.resolve(PromptRef("color", "producton"))


@pytest.mark.parametrize("alias", ["7", "", "Prod", "a..b", "a\x00"])
def test_alias_that_is_no_name_is_refused(
    registry: PromptRegistry, trained: Trained, alias: str
) -> None:
    register_all(registry, trained, 0.5)
    with pytest.raises(InvalidInput, match="alias: "):
        registry.promote(PromptRef("color", 1), alias, "ann")


def test_parallel_promotions_make_one_sequence_of_generations(
    registry: PromptRegistry, trained: Trained
) -> None:
    register_all(registry, trained, 0.1, 0.2, 0.3)

    def promote(number: int) -> None:
        registry.promote(PromptRef("color", 1 + number % 3), "production", f"actor {number}")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(promote, range(24)))
    moves = registry.history("color")[::-1]
    assert [move.generation for move in moves] == list(range(1, len(moves) + 1))
    assert [move.from_version for move in moves] == [None, *(m.to_version for m in moves[:-1])]
    assert registry.resolve(PromptRef("color", "production")).number == moves[-1].to_version


def test_parallel_promotions_behind_a_gate_leave_the_best(
    registry: PromptRegistry, trained: Trained
) -> None:
    register_all(registry, trained, *(0.1 * i for i in range(8)))
    gate = Gate.parse("accuracy > incumbent.accuracy")

    def promote(number: int) -> bool:
        try:
            registry.promote(PromptRef("color", number), "production", "ann", gate=gate)
        except GateRefused:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        moved = list(pool.map(promote, range(1, 9)))
    assert registry.resolve(PromptRef("color", "production")).number == 8
    assert sum(moved) == len(registry.history("color"))


def test_list_is_newest_first_and_limited(registry: PromptRegistry, trained: Trained) -> None:
    register_all(registry, trained, 0.1, 0.2)
    registry.register(trained("shape"))
    assert [v.ref for v in registry.list()] == ["shape@1", "color@2", "color@1"]
    assert [v.ref for v in registry.list("color", limit=1)] == ["color@2"]
    assert registry.list("none") == []


def test_lineage_given_as_other_mappings_is_stored(
    registry: PromptRegistry, trained: Trained
) -> None:
    from types import MappingProxyType

    given = trained()
    lineage = replace(given.lineage, datasets=MappingProxyType({"train": "d"}))
    version, _ = registry.register(replace(given, lineage=lineage))
    assert version.lineage.datasets == {"train": "d"}
