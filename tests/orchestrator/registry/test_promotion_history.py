"""Rollbacks walk back through what was promoted; the past can be asked for."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.domain.errors import AliasMoved, InvalidInput, UnknownName
from orchestrator.domain.prompt_version import PromptRef, TrainedPrompt
from orchestrator.registry.outbox import Outbox
from orchestrator.registry.prompt_registry import PromptRegistry

Trained = Callable[..., TrainedPrompt]


@pytest.fixture
def five(registry: PromptRegistry, trained: Trained) -> PromptRegistry:
    """color@1 to color@5."""
    for number in range(5):
        registry.register(trained(content=number))
    return registry


def promote_all(registry: PromptRegistry, *numbers: int, alias: str = "production") -> None:
    for number in numbers:
        registry.promote(PromptRef("color", number), alias, "ann")


def current(registry: PromptRegistry, alias: str = "production") -> int:
    return registry.resolve(PromptRef("color", alias)).number


def test_rollback_is_a_promotion_to_the_version_before(
    five: PromptRegistry, outbox: Outbox
) -> None:
    promote_all(five, 3, 4)
    back = five.rollback("color", "production", "bob", "it stammers")
    assert (back.from_version, back.to_version, back.generation) == (4, 3, 3)
    assert (back.actor, back.reason, back.gate, back.restores) == ("bob", "it stammers", None, 1)
    assert five.history("color", limit=1) == [back]
    assert current(five) == 3
    last = outbox.pending()[-1]
    assert (last.kind, last.payload) == (
        "alias_moved",
        {"task": "color", "alias": "production", "number": 3},
    )


def test_rollbacks_walk_back_and_do_not_flip(five: PromptRegistry) -> None:
    promote_all(five, 1, 2, 3)
    assert five.rollback("color", "production", "ann").to_version == 2
    assert five.rollback("color", "production", "ann").to_version == 1
    with pytest.raises(InvalidInput, match=r"color@1, the first version .* nothing to roll back"):
        five.rollback("color", "production", "ann")
    promote_all(five, 4)
    assert five.rollback("color", "production", "ann").to_version == 1
    assert [move.generation for move in five.history("color")] == [7, 6, 5, 4, 3, 2, 1]


def test_version_that_was_promoted_back_by_hand_is_a_promotion(five: PromptRegistry) -> None:
    promote_all(five, 1, 2, 1)
    assert five.rollback("color", "production", "ann").to_version == 2


def test_first_version_has_nothing_before_it(five: PromptRegistry, outbox: Outbox) -> None:
    promote_all(five, 1)
    num_items = outbox.num_pending()
    with pytest.raises(InvalidInput, match="nothing to roll back to\n.*tutti prompts promote"):
        five.rollback("color", "production", "ann")
    assert (len(five.history("color")), outbox.num_pending()) == (1, num_items)


def test_rollback_from_another_version_than_believed_is_refused(five: PromptRegistry) -> None:
    promote_all(five, 1, 2, 3)
    assert five.rollback("color", "production", "ann", if_current=3).to_version == 2
    with pytest.raises(AliasMoved, match=r"points at color@2 .*moved there by ann"):
        five.rollback("color", "production", "ann", if_current=3)
    assert current(five) == 2


def test_aliases_are_rolled_back_on_their_own(five: PromptRegistry) -> None:
    promote_all(five, 1, 2)
    promote_all(five, 4, 5, alias="staging")
    five.rollback("color", "staging", "ann")
    assert (current(five), current(five, "staging")) == (2, 4)


moves = st.lists(st.one_of(st.integers(1, 5), st.sampled_from(["rollback", "unset"])), max_size=12)
aliases = (f"alias-{number}" for number in range(10**6))


@given(moves)
@settings(
    deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_moves_are_a_stack_that_rollbacks_take_from(
    five: PromptRegistry, moves: Sequence[int | str]
) -> None:
    alias = next(aliases)
    stack: list[int | None] = [None]  # none: it is no alias
    for move in moves:
        if isinstance(move, int):
            promote_all(five, move, alias=alias)
            stack += [] if stack[-1] == move else [move]
        elif len(stack) == 1:
            with pytest.raises(UnknownName):
                (five.unset if move == "unset" else five.rollback)("color", alias, "ann")
        elif move == "unset":
            five.unset("color", alias, "ann")
            stack += [] if stack[-1] is None else [None]
        elif stack[-2] is not None:
            five.rollback("color", alias, "ann")
            stack.pop()
        else:
            with pytest.raises(InvalidInput):
                five.rollback("color", alias, "ann")
        assert [v.number for v in five.list("color", alias)] == [n for n in stack[-1:] if n]


def test_the_past_is_what_aliases_pointed_at_then(five: PromptRegistry, trained: Trained) -> None:
    five.register(trained("shape"))
    promote_all(five, 1)
    promote_all(five, 5, alias="staging")
    five.promote(PromptRef("shape", 1), "production", "bob")
    five.promote(PromptRef("color", 2), "production", "bob")
    five.rollback("color", "production", "ann")
    history = five.history("color", "production")[::-1]
    for move in history:
        assert move in five.at(move.promoted_at)
    just_before = history[1].promoted_at - timedelta(microseconds=1)
    found = five.at(just_before)
    assert [(move.task, move.alias, move.to_version) for move in found] == [
        ("color", "production", 1),
        ("color", "staging", 5),
        ("shape", "production", 1),
    ]
    assert five.at(just_before, ["shape"]) == found[2:]
    assert five.at(history[0].promoted_at - timedelta(microseconds=1)) == []
    assert [m.to_version for m in five.at(datetime.now(UTC) + timedelta(days=1), ["color"])] == [
        1,
        5,
    ]


def test_the_past_of_an_unknown_task_is_refused(five: PromptRegistry) -> None:
    with pytest.raises(UnknownName, match="did you mean 'color'"):
        five.at(datetime.now(UTC), ["color", "colour"])


def test_history_is_cut_to_the_newest(five: PromptRegistry) -> None:
    promote_all(five, 1, 2, 3)
    assert [move.to_version for move in five.history("color", limit=2)] == [3, 2]
