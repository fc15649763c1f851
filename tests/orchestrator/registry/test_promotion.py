"""Moves that ask where the alias is, and gates that know more than metrics."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from sqlalchemy import text

from orchestrator.domain.errors import AliasMoved, GateRefused, InvalidInput, UnknownName
from orchestrator.domain.gate import Gate
from orchestrator.domain.job import Lease
from orchestrator.domain.prompt_version import Promotion, PromptRef, TrainedPrompt
from orchestrator.domain.task_spec import PromoteSpec
from orchestrator.registry.database import Database
from orchestrator.registry.outbox import Outbox
from orchestrator.registry.prompt_registry import PromptRegistry

Trained = Callable[..., TrainedPrompt]
Running = Callable[..., Lease]


@pytest.fixture
def three(registry: PromptRegistry, trained: Trained) -> PromptRegistry:
    """color@1 to color@3, of accuracy 0.1 to 0.3."""
    for number in (1, 2, 3):
        registry.register(trained(content=number, accuracy=number / 10))
    return registry


def promote(registry: PromptRegistry, number: int, **options: object) -> Promotion:
    return registry.promote(PromptRef("color", number), "production", "ann", **options)  # type: ignore[arg-type]


def test_move_from_the_believed_version_is_made(three: PromptRegistry) -> None:
    promote(three, 1, if_current=0)
    assert promote(three, 2, if_current=1).generation == 2


def test_move_from_another_version_says_what_is_there_since_when_and_by_whom(
    three: PromptRegistry, outbox: Outbox
) -> None:
    first = promote(three, 1)
    num_items = outbox.num_pending()
    with pytest.raises(AliasMoved) as caught:
        promote(three, 3, if_current=2)
    assert str(caught.value).startswith(
        "color@production was not moved: it points at color@1 since "
        f"{first.promoted_at:%Y-%m-%d %H:%M:%S} UTC, moved there by ann, and was believed at "
        "version 2"
    )
    assert "--if-current 1" in caught.value.remedy
    with pytest.raises(AliasMoved, match="was believed to be no alias"):
        promote(three, 3, if_current=0)
    with pytest.raises(AliasMoved, match="is no alias yet, and was believed at version 1"):
        three.promote(PromptRef("color", 3), "staging", "ann", if_current=1)
    assert (three.history("color"), outbox.num_pending()) == ([first], num_items)


def test_force_does_not_move_an_alias_that_is_elsewhere(three: PromptRegistry) -> None:
    promote(three, 1)
    with pytest.raises(AliasMoved):
        promote(three, 3, if_current=2, force=True)


def test_repeated_move_that_was_made_is_that_move(three: PromptRegistry) -> None:
    promote(three, 1)
    moved = promote(three, 2, if_current=1)
    assert promote(three, 2, if_current=1) == moved
    assert len(three.history("color")) == 2


def test_of_many_who_believe_the_same_one_moves(three: PromptRegistry) -> None:
    promote(three, 1)

    def move(number: int) -> bool:
        try:
            promote(three, 2 + number % 2, if_current=1, reason=str(number))
        except AliasMoved:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        moved = list(pool.map(move, range(16)))
    # Those who wanted what the winner did got it too.
    assert len(three.history("color")) == 2
    winner = three.resolve(PromptRef("color", "production")).number
    assert moved == [2 + number % 2 == winner for number in range(16)]


def test_gate_compares_the_data_sets_of_both(registry: PromptRegistry, trained: Trained) -> None:
    same = Gate.parse("eval.digest == incumbent.eval.digest")
    for number, digest in enumerate(("a" * 64, "a" * 64, "b" * 64)):
        given = trained(content=number)
        lineage = replace(given.lineage, datasets={"eval": digest})
        registry.register(replace(given, lineage=lineage))
    promote(registry, 1, gate=same)
    promote(registry, 2, gate=same)
    with pytest.raises(GateRefused, match="is false: bbbbbbbbbbbb against aaaaaaaaaaaa"):
        promote(registry, 3, gate=same)


def test_gate_knows_how_old_a_version_is(
    three: PromptRegistry, database: Database, dialect: str
) -> None:
    young = Gate.parse("age < 1h and base == 'tiny'")
    promote(three, 1, gate=young)
    with pytest.raises(GateRefused, match=r"age > 1m is false: 0?\.?\d+s against 1m"):
        promote(three, 2, gate=Gate.parse("age > 1m"))


def test_gate_counts_approvals(three: PromptRegistry) -> None:
    gate = Gate.parse("approvals >= 2")
    ref = PromptRef("color", 1)
    with pytest.raises(GateRefused, match="approvals >= 2 is false: 0 against 2"):
        promote(three, 1, gate=gate)
    three.approve(ref, "bob")
    three.approve(ref, "cid")
    three.withdraw(ref, "bob")
    with pytest.raises(GateRefused, match="approvals >= 2 is false: 1 against 2"):
        promote(three, 1, gate=gate)
    three.approve(ref, "bob")
    assert promote(three, 1, gate=gate).overrode is None
    forced = promote(three, 2, gate=gate, force=True)
    assert forced.overrode == "approvals >= 2 is false: 0 against 2"


def test_job_whose_gate_wants_approvals_leaves_a_version_to_approve(
    registry: PromptRegistry, trained: Trained, running: Running
) -> None:
    spec = PromoteSpec(alias="production", when="approvals >= 1")
    done = registry.complete(running(), trained(), spec, "controller")
    assert done.refusals == ("approvals >= 1 is false: 0 against 1",)
    assert (done.version.lineage.author, done.version.lineage.attempt) == ("ann", 1)
    with pytest.raises(InvalidInput, match="ann is the author of color@1"):
        registry.approve(PromptRef("color", 1), "ann")
    registry.approve(PromptRef("color", 1), "bob")
    assert promote(registry, 1, gate=Gate.parse("approvals >= 1")).to_version == 1


def test_rollback_of_an_unknown_alias_or_task_says_what_there_is(three: PromptRegistry) -> None:
    promote(three, 1)
    with pytest.raises(UnknownName, match="did you mean 'production'"):
        three.rollback("color", "prodction", "ann")
    with pytest.raises(UnknownName, match="did you mean 'color'"):
        three.rollback("colour", "production", "ann")
    with pytest.raises(InvalidInput, match="is a number"):
        three.rollback("color", "7", "ann")


def test_versions_of_the_older_lineage_are_read(
    three: PromptRegistry, database: Database, dialect: str
) -> None:
    new = ("attempt", "author", "packages", "hardware")
    with database.write() as connection:
        if dialect == "postgres":
            connection.execute(text("SET LOCAL session_replication_role = replica"))
            minus = " - ".join(f"'{name}'" for name in new)
            change = f"lineage = (lineage::jsonb - {minus})::json"
        else:
            connection.execute(text("DROP TRIGGER prompt_versions_refuse_update"))
            paths = ", ".join(f"'$.{name}'" for name in new)
            change = f"lineage = json_remove(lineage, {paths})"
        connection.execute(text(f"UPDATE prompt_versions SET {change}"))
    lineage = three.resolve(PromptRef("color", 1)).lineage
    assert (lineage.attempt, lineage.author, lineage.packages, lineage.hardware) == (
        None,
        None,
        {},
        "",
    )
    assert promote(three, 1, gate=Gate.parse("approvals == 0")).to_version == 1
