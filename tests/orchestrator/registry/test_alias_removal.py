"""An alias that is taken away is gone at once, and its history goes on."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from orchestrator.domain.errors import AliasMoved, InvalidInput, UnknownName
from orchestrator.domain.gate import Gate
from orchestrator.domain.prompt_version import Promotion, PromptRef, TrainedPrompt
from orchestrator.registry.consistency import Consistency
from orchestrator.registry.database import Database
from orchestrator.registry.outbox import Outbox
from orchestrator.registry.prompt_registry import PromptRegistry

PRODUCTION = PromptRef("color", "production")


@pytest.fixture
def two(registry: PromptRegistry, trained: Callable[..., TrainedPrompt]) -> PromptRegistry:
    """color@1 and color@2, of accuracy 0.1 and 0.2; production went from 1 to 2."""
    for number in (1, 2):
        registry.register(trained(content=number, accuracy=number / 10))
        promote(registry, number)
    return registry


def promote(registry: PromptRegistry, number: int, **options: object) -> Promotion:
    return registry.promote(PromptRef("color", number), "production", "ann", **options)  # type: ignore[arg-type]


def unset(registry: PromptRegistry, **options: object) -> Promotion:
    return registry.unset("color", "production", "bob", **options)  # type: ignore[arg-type]


def test_alias_that_is_taken_away_points_at_nothing(two: PromptRegistry, outbox: Outbox) -> None:
    move = unset(two, reason="retired")
    assert (move.from_version, move.to_version, move.generation) == (2, None, 3)
    assert (move.actor, move.reason, move.gate, move.restores) == ("bob", "retired", None, None)
    assert two.history("color", limit=1) == [move]
    assert two.list(alias="production") == []
    assert two.resolve(PromptRef("color", 2)).aliases == ()
    with pytest.raises(UnknownName, match="production"):
        two.resolve(PRODUCTION)
    last = outbox.pending()[-1]
    assert (last.kind, last.payload) == ("alias_removed", {"task": "color", "alias": "production"})


def test_the_past_says_when_it_was_taken_away(two: PromptRegistry) -> None:
    before = two.history("color", limit=1)
    move = unset(two)
    assert two.at(before[0].promoted_at) == before
    assert two.at(move.promoted_at) == [move]


def test_rollback_brings_it_back_and_goes_on_from_there(two: PromptRegistry) -> None:
    unset(two)
    back = two.rollback("color", "production", "ann", if_current=0)
    assert (back.from_version, back.to_version, back.generation, back.restores) == (None, 2, 4, 2)
    assert two.rollback("color", "production", "ann").to_version == 1


def test_promotion_makes_it_again_and_never_reuses_a_generation(
    two: PromptRegistry, database: Database
) -> None:
    unset(two)
    move = promote(two, 1, if_current=0, gate=Gate.parse("accuracy > incumbent.accuracy"))
    assert (move.from_version, move.to_version, move.generation) == (None, 1, 4)
    with pytest.raises(InvalidInput, match="the first version since it was taken away: there is n"):
        two.rollback("color", "production", "ann")
    unset(two)
    assert [m.generation for m in two.history("color")] == [5, 4, 3, 2, 1]
    assert Consistency(database).aliases() == []


def test_alias_that_is_gone_is_not_taken_away_twice(two: PromptRegistry, outbox: Outbox) -> None:
    move = unset(two, if_current=2)
    num_items = outbox.num_pending()
    assert unset(two, if_current=2) == move
    assert outbox.num_pending() == num_items


def test_what_never_was_an_alias_cannot_be_taken_away(two: PromptRegistry) -> None:
    with pytest.raises(UnknownName, match="did you mean 'production'"):
        two.unset("color", "prodction", "ann")
    with pytest.raises(UnknownName, match="did you mean 'color'"):
        two.unset("colour", "production", "ann")


def test_alias_that_is_elsewhere_than_believed_stays(two: PromptRegistry) -> None:
    with pytest.raises(AliasMoved, match="points at color@2 since .* was believed at version 1"):
        unset(two, if_current=1)
    assert two.resolve(PRODUCTION).number == 2


def test_move_from_a_version_of_an_alias_that_is_gone_says_who_took_it_away(
    two: PromptRegistry,
) -> None:
    unset(two)
    with pytest.raises(AliasMoved, match="is no alias since .*, taken away by bob") as caught:
        promote(two, 1, if_current=2)
    assert "--if-current 0" in caught.value.remedy
    with pytest.raises(AliasMoved, match="taken away by bob"):
        two.rollback("color", "production", "ann", if_current=2)


def test_other_aliases_of_the_version_stay(two: PromptRegistry) -> None:
    two.promote(PromptRef("color", 2), "staging", "ann")
    unset(two)
    assert two.resolve(PromptRef("color", "staging")).aliases == ("staging",)
    with pytest.raises(UnknownName, match="staging"):
        two.resolve(PRODUCTION)


def test_of_a_removal_and_promotions_at_once_all_make_one_chain(
    two: PromptRegistry, database: Database
) -> None:
    def act(number: int) -> Promotion:
        return unset(two) if number % 2 else promote(two, 1 + number % 4 // 2)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(act, range(32)))
    moves = two.history("color")[::-1]
    assert [move.generation for move in moves] == list(range(1, len(moves) + 1))
    assert [m.from_version for m in moves] == [None, *(m.to_version for m in moves[:-1])]
    assert Consistency(database).aliases() == []
