"""Filters are read as they are written, and nothing else is."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.domain.errors import InvalidInput
from orchestrator.domain.version_filter import (
    OPPOSITE,
    Combination,
    Comparison,
    VersionFilter,
    parse_filter,
)

ACCURATE = Comparison("metrics", ">", 0.8, "accuracy")
ON_BASE = Comparison("base", "=", "smollm2-135m")
OLD = Comparison("age", ">", timedelta(days=30))


@pytest.mark.parametrize(
    ("source", "tree"),
    [
        ("metrics.accuracy > 0.8", ACCURATE),
        ("metrics.accuracy>0.8", ACCURATE),
        ("base = smollm2-135m", ON_BASE),
        ("base == 'smollm2-135m'", ON_BASE),
        ('base="smollm2-135m"', ON_BASE),
        ("age > 30d", OLD),
        ("task = 'and'", Comparison("task", "=", "and")),
        ("number >= 3", Comparison("number", ">=", 3)),
        ("metrics.loss < -1e-3", Comparison("metrics", "<", -0.001, "loss")),
        ("alias != production", Comparison("alias", "!=", "production")),
        (
            "created < 2026-01-31T12:00:00Z",
            Comparison("created", "<", datetime(2026, 1, 31, 12, tzinfo=UTC)),
        ),
        (
            "metrics.accuracy > 0.8 and base = smollm2-135m",
            Combination("and", (ACCURATE, ON_BASE)),
        ),
        (
            "base = smollm2-135m or metrics.accuracy > 0.8 AND age > 30d",
            Combination("or", (ON_BASE, Combination("and", (ACCURATE, OLD)))),
        ),
        (
            "(base = smollm2-135m or metrics.accuracy > 0.8) and age > 30d",
            Combination("and", (Combination("or", (ON_BASE, ACCURATE)), OLD)),
        ),
    ],
)
def test_a_filter_is_read_as_a_tree(source: str, tree: VersionFilter) -> None:
    assert parse_filter(source) == tree


def test_not_goes_down_to_the_comparisons() -> None:
    tree = parse_filter("not (metrics.accuracy > 0.8 and not base = x)")
    assert tree == Combination(
        "or", (Comparison("metrics", "<=", 0.8, "accuracy"), Comparison("base", "=", "x"))
    )
    assert parse_filter("not not age > 30d") == OLD


@pytest.mark.parametrize(
    ("source", "place", "says"),
    [
        ("", 1, "ends too early"),
        ("accuracy > 0.8", 1, "a metric is written metrics.accuracy"),
        ("metrics.accuracy >", 19, "expected a value for metrics"),
        ("metrics.accuracy 0.8", 18, "expected one of = != < <= > >="),
        ("metrics.accuracy > high", 20, "compared with a number"),
        ("metrics.accuracy > nan", 20, "compared with a number"),
        ("metrics. > 1", 1, "not a field"),
        ("base > x", 6, "after base expected one of = !="),
        ("bse = x", 1, "did you mean base?"),
        ("base = x base = y", 10, "expected `and`, `or` or the end"),
        ("(base = x", 10, "ends too early"),
        ("base = x)", 9, "expected `and`, `or` or the end"),
        ("base = 'x", 8, "expected a value for base"),
        ("base = ''", 8, "at least one character"),
        ("number = 3.5", 10, "a whole number"),
        ("number = 99999999999", 10, "a whole number up to 999999999"),
        ("age < 30", 7, "as in 30d"),
        ("age < 999999w", 7, "at most 36500d"),
        ("created > yesterday", 11, "a time is written"),
        ("created > 0001-01-01", 11, "a time is written"),
        ("base = x; DROP TABLE jobs", 11, "expected `and`, `or` or the end"),
        ("'metrics.accuracy' > 1", 1, "not a field"),
    ],
)
def test_the_wrong_part_is_pointed_at(source: str, place: int, says: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        parse_filter(source)
    assert f"at character {place}:" in refused.value.message
    assert says in refused.value.message
    assert "'metrics.accuracy > 0.8 and age < 30d'" in refused.value.remedy


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("(" * 400 + "base = x" + ")" * 400, "nested deeper than 40 levels"),
        ("not " * 200 + "base = x", "nested deeper than 40 levels"),
        ("base = " + "x" * 2000, "at most 1000 are allowed"),
    ],
)
def test_a_filter_out_of_bounds_is_refused(source: str, says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        parse_filter(source)


@settings(deadline=None, max_examples=200)
@given(st.text(st.sampled_from("basek=mtrc.on<>!()'\" 0d\x00\ud800é"), max_size=40))
def test_any_text_is_read_or_refused(source: str) -> None:
    try:
        tree = parse_filter(source)
    except InvalidInput:
        return
    assert isinstance(tree, Comparison | Combination)


def comparisons() -> st.SearchStrategy[Comparison]:
    values = st.floats(-1e6, 1e6, allow_nan=False)
    return st.builds(
        Comparison, st.just("metrics"), st.sampled_from(list(OPPOSITE)), values, st.just("loss")
    )


def trees() -> st.SearchStrategy[VersionFilter]:
    def join(inner: st.SearchStrategy[VersionFilter]) -> st.SearchStrategy[VersionFilter]:
        parts = st.lists(inner, min_size=2, max_size=3).map(tuple)
        return st.builds(Combination, st.sampled_from(["and", "or"]), parts)

    return st.recursive(comparisons(), join, max_leaves=6)


def written(tree: VersionFilter) -> str:
    if isinstance(tree, Comparison):
        return f"{tree.field}.{tree.metric} {tree.symbol} {tree.value!r}"
    return "(" + f" {tree.word} ".join(map(written, tree.parts)) + ")"


@settings(deadline=None, max_examples=50)
@given(trees())
def test_a_tree_that_is_written_down_is_read_back(tree: VersionFilter) -> None:
    assert parse_filter(written(tree)) == tree
    assert parse_filter(f"not not {written(tree)}") == tree
