"""Gates know more of a version than its metrics, and only compare like with like."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.domain.gate import Gate, Verdict
from orchestrator.domain.gate_term import FACTS, MAX_SHOWN

DAY_S = 86_400
CANDIDATE = {
    "accuracy": 0.7,
    "age": 29.5 * DAY_S,
    "approvals": 1,
    "base": "smollm2-135m",
    "eval.digest": "a" * 64,
    "eval.rows": 100,
    "seed": 7,
}
INCUMBENT = {**CANDIDATE, "age": 3600.0, "eval.digest": "b" * 64}


@pytest.mark.parametrize(
    ("source", "passes"),
    [
        ("age < 30d", True),
        ("age < 29d", False),
        ("age > 4w", True),
        ("age > 2548799s and age < 708.5h and age < 42481m", True),
        ("incumbent.age == 60m", True),
        ("age > incumbent.age", True),
        ("1d < age < 30d", True),
        ("approvals >= 1", True),
        ("approvals >= 2", False),
        ("eval.digest == eval.digest", True),
        ("eval.digest == incumbent.eval.digest", False),
        ("eval.digest != incumbent.eval.digest", True),
        ("not eval.digest == incumbent.eval.digest", True),
        ("base == 'smollm2-135m'", True),
        ('base == "smollm2-135m" and seed == 7 and eval.rows >= 100', True),
        ("base != 'smollm2-135m'", False),
        ("base == '30d'", False),
        ("metrics.accuracy >= 0.7", True),
        ("metrics.accuracy > incumbent.metrics.accuracy", False),
    ],
)
def test_facts_are_compared_beside_metrics(source: str, passes: bool) -> None:
    assert Gate.parse(source).judge(CANDIDATE, INCUMBENT).passed is passes


@pytest.mark.parametrize(
    ("source", "failure"),
    [
        ("age < 29d", "age < 29d is false: 29.5d against 29d"),
        ("age < 90m", "age < 90m is false: 29.5d against 1.5h"),
        ("approvals >= 2", "approvals >= 2 is false: 1 against 2"),
        (
            "eval.digest == incumbent.eval.digest",
            "eval.digest == incumbent.eval.digest is false: aaaaaaaaaaaa against bbbbbbbbbbbb",
        ),
        (
            "base == 'other'",
            "base == 'other' is false: 'smollm2-135m' against 'other'",
        ),
        ("test.digest != base", "test.digest != base is false: unknown against 'smollm2-135m'"),
        ("not age > 1d", "not age > 1d is false: 29.5d against 1d"),
    ],
)
def test_a_refusal_shows_both_values(source: str, failure: str) -> None:
    assert Gate.parse(source).judge(CANDIDATE, INCUMBENT).failures == (failure,)


def test_a_fact_that_is_not_known_never_passes() -> None:
    for source in ("test.digest == 'a'", "test.digest != 'a'", "not test.digest == 'a'"):
        assert not Gate.parse(source).judge(CANDIDATE, INCUMBENT).passed


def test_without_an_incumbent_its_facts_hold() -> None:
    source = "eval.digest == incumbent.eval.digest and incumbent.age > 30d"
    assert Gate.parse(source).judge(CANDIDATE, None) == Verdict(True)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("age < 30", "compares a duration with a number.*30d"),
        ("accuracy > 30d", "compares a number with a duration"),
        ("approvals >= '2'", "compares a number with a text"),
        ("base == 7", "compares a text with a number"),
        ("base > 'a'", "texts with == and != only"),
        ("1d < age < 30", "compares a duration with a number"),
        ("eval.digset == 'x'", "'eval.digset' is not a name; did you mean eval.digest?"),
        ("incumbent.eval.x == 'x'", "is not a name"),
        ("metrics.a.b > 1", "is not a name"),
        ("metrics.age > 1", "is not a name"),
        ("incumbent.incumbent > 1", "is not a name"),
        ("age < -30d", "is not a metric, number, text or duration"),
        ("age < 30d 40d", "is not a metric, number, text or duration"),
        ("age < 30y", "cannot read the gate"),
        ("age < 9999999999999d", "cannot read the gate"),
        ("age < 30d.real", "is not a metric|cannot read"),
        ("age < 30d + 1d", "is not a metric"),
        ("base == b'x'", "is not a metric"),
        ("base == f'{age}'", "is not a metric"),
        ("base == 'unclosed", "cannot read the gate"),
        ("base == 'a' 30d", "is not a metric"),
        ("base.__class__ == 'x'", "is not a name"),
        ("age in ('30d',)", "is not a condition"),
    ],
)
def test_what_could_never_hold_is_refused_when_it_is_read(source: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Gate.parse(source)


def test_durations_inside_of_texts_and_names_stay_what_they_are() -> None:
    for text in ("30d", "x 30d y", "it's 30d", 'a "30d" b', "back\\slash 30d"):
        gate = Gate.parse(f"base == {text!r}")
        assert gate.judge({"base": text}, None).passed, text
    assert Gate.parse("a_30d > 1 and x30d > 1").judge({"a_30d": 2, "x30d": 2}, None).passed


def test_a_long_text_is_cut_in_a_refusal() -> None:
    (failure,) = Gate.parse("base == 'x'").judge({"base": "y" * 500}, None).failures
    assert len(failure) < 2 * MAX_SHOWN


names = st.sampled_from(sorted(FACTS))
values = st.sampled_from(["30d", "1.5h", "0.5", "'a'", "accuracy"])


def is_alike(left: str, symbol: str, right: str) -> bool:
    """Whether both sides are of one kind, and that kind has this comparison."""
    kinds = {**FACTS, "30d": "duration", "1.5h": "duration", "'a'": "text"}
    kind, other = kinds[left], kinds.get(right.removeprefix("incumbent."), "number")
    return kind == other and (kind != "text" or symbol != "<")


@given(names, st.sampled_from(["<", "==", "!="]), st.one_of(names, values), st.booleans())
@settings(deadline=None, max_examples=200)
def test_any_comparison_is_refused_or_has_an_answer_with_both_values(
    left: str, symbol: str, right: str, of_incumbent: bool
) -> None:
    if of_incumbent and right in FACTS:
        right = f"incumbent.{right}"
    try:
        gate = Gate.parse(f"{left} {symbol} {right}")
    except ValueError:
        assert not is_alike(left, symbol, right)
        return
    assert is_alike(left, symbol, right)
    verdict = gate.judge(CANDIDATE, INCUMBENT)
    assert verdict.passed or re.search(" is false: .+ against .+", verdict.failures[0])
