"""Halving as a pure rule: scores in, those that stop out."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.domain.bracket import Bracket, Standing, rank
from orchestrator.domain.sweep import HalvingSpec

#: Few distinct scores, so that ties are common.
SCORES = st.tuples(st.integers(0, 3).map(float), st.integers(-2, 0).map(float))
RUNGS = 3


def halving(factor: int) -> HalvingSpec:
    return HalvingSpec(factor=factor, first=10)


def at(step: int, *scores: float) -> dict[int, Standing]:
    return {index: Standing(step, (score, 0.0)) for index, score in enumerate(scores)}


def test_the_best_half_rounded_up_goes_on() -> None:
    bracket = Bracket(halving(2), 80)
    stopped = bracket.judge(at(10, 0.5, 0.9, 0.1, 0.7, 0.3), {})
    assert stopped == {2: "stopped at step 10: rank 5 of 5", 4: "stopped at step 10: rank 4 of 5"}


def test_of_equal_trials_the_first_goes_on() -> None:
    assert list(Bracket(halving(3), 80).judge(at(10, 0.5, 0.5, 0.5), {})) == [1, 2]


def test_only_rungs_are_judged() -> None:
    bracket = Bracket(halving(2), 80)
    assert sorted(bracket.scores) == [10, 20, 40]
    for step in (1, 9, 11, 30, 80, 160):
        assert bracket.judge(at(step, 0.1, 0.2), {}) == {}
    assert Bracket(None, 80).judge(at(10, 0.1, 0.2), {}) == {}


def test_a_trial_that_came_later_is_judged_among_those_before_it() -> None:
    bracket = Bracket(halving(2), 80)
    assert list(bracket.judge(at(10, 0.5, 0.9), {})) == [0]
    late = {2: Standing(10, (0.6, 0.0)), 3: Standing(10, (0.4, 0.0))}
    assert bracket.judge(late, {}) == {3: "stopped at step 10: rank 4 of 4"}


def test_a_trial_that_ended_early_counts_with_its_last_score() -> None:
    bracket = Bracket(halving(2), 80)
    ended = {9: Standing(5, (0.8, 0.0))}
    assert list(bracket.judge(at(10, 0.5, 0.9), ended)) == [0]
    later = {9: Standing(30, (0.8, 0.0))}
    assert list(Bracket(halving(2), 80).judge(at(10, 0.5, 0.9, 0.6), later)) == [0]


@given(st.lists(st.tuples(*[SCORES] * RUNGS), min_size=1, max_size=20), st.integers(2, 5))
@settings(max_examples=100, deadline=None)
def test_no_trial_goes_on_past_a_better_one_and_the_best_of_all_stays(
    trials: list[tuple[tuple[float, float], ...]], factor: int
) -> None:
    """Scores are the best so far, so they only grow."""
    bracket = Bracket(halving(factor), 10 * factor**RUNGS)
    living = list(range(len(trials)))
    best: dict[int, tuple[float, float]] = {}
    for level in range(RUNGS):
        for index in living:
            best[index] = max(trials[index][: level + 1])
        training = {index: Standing(10 * factor**level, best[index]) for index in living}
        stopped = bracket.judge(training, {})
        kept = [index for index in living if index not in stopped]
        assert len(kept) == -(-len(living) // factor)
        for out in stopped:
            assert all((best[index], -index) > (best[out], -out) for index in kept)
        living = kept
    assert rank(best)[0] in living
    assert all(
        len(bracket.scores[one]) >= len(bracket.scores[other])
        for one, other in pairwise(sorted(bracket.scores))
    )


@given(st.dictionaries(st.integers(0, 30), SCORES, min_size=1), st.randoms())
@settings(max_examples=50, deadline=None)
def test_the_order_of_trials_does_not_matter(
    scores: dict[int, tuple[float, float]], generator: object
) -> None:
    items = list(scores.items())
    generator.shuffle(items)  # type: ignore[attr-defined]
    judged = [
        Bracket(halving(2), 80).judge({i: Standing(10, s) for i, s in order}, {})
        for order in (scores.items(), items)
    ]
    assert judged[0] == judged[1]


@pytest.mark.parametrize(
    ("factor", "first", "num_steps", "rungs"),
    [(2, 20, 80, [20, 40]), (3, 1, 10, [1, 3, 9]), (2, 20, 20, []), (4, 30, 10, [])],
)
def test_rungs_lie_below_the_last_step(
    factor: int, first: int, num_steps: int, rungs: list[int]
) -> None:
    assert HalvingSpec(factor=factor, first=first).rungs(num_steps) == rungs
