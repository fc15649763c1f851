import operator
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.domain.gate import MAX_LENGTH, Gate, Verdict

METRICS = {"accuracy": 0.7, "loss": 0.5, "exact_match": 0.0}
INCUMBENT = {"accuracy": 0.8, "loss": 0.6}


def judge(source: str, incumbent: dict[str, float] | None = None) -> Verdict:
    return Gate.parse(source).judge(METRICS, incumbent)


@pytest.mark.parametrize(
    ("source", "passes"),
    [
        ("accuracy >= 0.7", True),
        ("accuracy > 0.7", False),
        ("0.6 < accuracy < 0.8", True),
        ("0.6 < accuracy < 0.65", False),
        ("accuracy == 0.7", True),
        ("accuracy != 0.7", False),
        ("loss > -1", True),
        ("accuracy > loss", True),
        ("accuracy > 0.6 and loss < 0.6", True),
        ("accuracy > 0.6 and loss < 0.4", False),
        ("accuracy > 0.9 or loss < 0.6", True),
        ("accuracy > 0.9 or loss < 0.4", False),
        ("not accuracy < 0.6", True),
        ("not accuracy < 0.8", False),
        ("not (accuracy < 0.6 or loss > 0.6)", True),
        ("not (accuracy < 0.6 and loss > 0.4)", True),
        ("not (accuracy > 0.6 and loss > 0.4)", False),
        ("not 0.6 < accuracy < 0.65", True),
        ("not not accuracy > 0.6", True),
        ("(accuracy > 0.9 or loss < 0.6) and exact_match == 0", True),
        ("  accuracy > 0.6  ", True),
        ("exact_match >= 0", True),
        ("accuracy < 1e9", True),
    ],
)
def test_the_language_means_what_it_says(source: str, passes: bool) -> None:
    verdict = judge(source)
    assert verdict.passed is passes
    assert bool(verdict.failures) is not passes


@pytest.mark.parametrize(
    ("source", "passes"),
    [
        ("accuracy > incumbent.accuracy", False),
        ("accuracy >= 0.6 and loss < incumbent.loss", True),
        ("incumbent.accuracy > accuracy", True),
        ("not accuracy > incumbent.accuracy", True),
    ],
)
def test_the_incumbent_is_compared_with(source: str, passes: bool) -> None:
    assert judge(source, INCUMBENT).passed is passes


@pytest.mark.parametrize(
    "source",
    [
        "accuracy > incumbent.accuracy",
        "accuracy < incumbent.accuracy",
        "not accuracy > incumbent.accuracy",
        "incumbent.nothing == 1 and accuracy > 0.6",
        "0.6 < accuracy > incumbent.accuracy",
    ],
)
def test_without_an_incumbent_its_comparisons_hold(source: str) -> None:
    assert judge(source, None) == Verdict(True)


@pytest.mark.parametrize(
    "source", ["0.9 < accuracy > incumbent.accuracy", "incumbent.accuracy < accuracy > 0.9"]
)
def test_without_an_incumbent_the_rest_of_a_chain_still_counts(source: str) -> None:
    assert not judge(source, None).passed


@pytest.mark.parametrize(
    "source",
    [
        "recall > 0.5",
        "recall < 0.5",
        "not recall > 0.5",
        "not recall < 0.5",
        "recall == recall",
        "recall != recall",
        "accuracy > incumbent.recall",
        "not accuracy > incumbent.recall",
    ],
)
def test_a_metric_that_was_not_measured_never_passes(source: str) -> None:
    verdict = judge(source, INCUMBENT)
    assert not verdict.passed
    assert "not measured" in verdict.failures[0]


@pytest.mark.parametrize(
    ("source", "failures"),
    [
        ("accuracy >= 0.75", ["accuracy >= 0.75 is false: 0.7 against 0.75"]),
        ("not accuracy < 0.75", ["not accuracy < 0.75 is false: 0.7 against 0.75"]),
        (
            "accuracy > incumbent.accuracy",
            ["accuracy > incumbent.accuracy is false: 0.7 against 0.8"],
        ),
        (
            "accuracy >= 0.75 and loss < 0.4",
            ["accuracy >= 0.75 is false: 0.7 against 0.75", "loss < 0.4 is false: 0.5 against 0.4"],
        ),
        ("0.1 < accuracy < 0.2", ["accuracy < 0.2 is false: 0.7 against 0.2"]),
        ("recall > 0.5", ["recall > 0.5 is false: not measured against 0.5"]),
    ],
)
def test_a_refusal_names_each_condition_with_both_numbers(source: str, failures: list[str]) -> None:
    assert list(judge(source, INCUMBENT).failures) == failures


def test_numbers_that_differ_are_shown_to_differ() -> None:
    (failure,) = Gate.parse("accuracy >= 0.6").judge({"accuracy": 0.59996}, None).failures
    assert failure.endswith("0.59996 against 0.6")


def test_a_nan_never_passes() -> None:
    for source in ("accuracy > 0.5", "accuracy < 0.5", "accuracy == accuracy"):
        assert not Gate.parse(source).judge({"accuracy": float("nan")}, None).passed


@pytest.mark.parametrize(
    "source",
    [
        "",
        " ",
        "accuracy",
        "0.6",
        "True",
        "accuracy >= True",
        "accuracy >= None",
        "accuracy >= '0.6'",
        "accuracy >= 0.6j",
        "accuracy = 0.6",
        "accuracy := 0.6",
        "accuracy => 0.6",
        "accuracy is 0.6",
        "accuracy in (0.6, 0.7)",
        "accuracy + 1 > 0.6",
        "accuracy > 0.5 + 0.1",
        "accuracy > 2 ** 999999",
        "accuracy & 1 > 0",
        "~accuracy > 0",
        "+accuracy > 0",
        "-accuracy > 0",
        "accuracy > +1",
        "accuracy > --1",
        "incumbent > 0.5",
        "accuracy > incumbent",
        "accuracy > incumbent.a.b",
        "accuracy.real > 0.5",
        "candidate.accuracy > 0.5",
        "__import__('os').system('touch ran') == 0",
        "().__class__.__bases__[0].__subclasses__() == 0",
        "incumbent.__class__.__mro__ == 0",
        "incumbent['accuracy'] > 0.5",
        "[x for x in (1,)] == 0",
        "{**{}} == 0",
        "(lambda: 1)() == 1",
        "f'{accuracy}' == 0",
        "accuracy > 0.5 if loss else 1",
        "(yield) > 1",
        "await accuracy > 1",
        "accuracy > 0.5; loss < 1",
        "accuracy > 0.5\nloss < 1",
        "import os",
        "print(1) > 0",
        "eval('1') == 1",
        "accuracy > 0.5 or exit()",
        "accuracy > \x00",
        "accuracy > '\ud800'",
        "accuracy > " + "9" * 400,
        "accuracy > -" + "9" * 400,
        "accuracy > 1e999",
        "-" * 900 + "1 > accuracy",
        "not " * 240 + "accuracy",
        "a" + ".b" * 450 + " > 1",
        "(" * 300 + "a > 1" + ")" * 300,
        "f(" * 90 + ")" * 90 + " > 1",
        "a > 1 and " * 200 + "a > 1",
    ],
)
def test_anything_else_is_refused_and_never_run(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"gate|number") as caught:
        Gate.parse(source)
    assert type(caught.value) is ValueError
    assert len(str(caught.value)) < 2 * MAX_LENGTH
    assert list(tmp_path.iterdir()) == []


def test_a_gate_has_a_longest_length() -> None:
    longest = "a > 1" + " " * (MAX_LENGTH - 5)
    assert Gate.parse(longest).source == longest
    with pytest.raises(ValueError, match=f"{MAX_LENGTH + 1} characters; at most {MAX_LENGTH}"):
        Gate.parse(longest + " ")


def test_incumbents_attributes_are_looked_up_as_metrics_alone() -> None:
    assert not judge("incumbent.__class__ == 0", INCUMBENT).passed
    assert not judge("incumbent.keys == 0", INCUMBENT).passed


COMPARE = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}
comparisons = st.tuples(
    st.sampled_from(["accuracy", "loss", "incumbent.accuracy", "0.5", "-1", "7"]),
    st.sampled_from(sorted(COMPARE)),
    st.sampled_from(["accuracy", "incumbent.loss", "0.7", "0"]),
)
trees = st.recursive(
    comparisons,
    lambda inner: st.one_of(
        st.tuples(st.just("not"), inner),
        st.tuples(st.sampled_from(["and", "or"]), inner, inner),
    ),
    max_leaves=8,
)


def text_of(tree: tuple) -> str:
    if tree[0] == "not":
        return f"not ({text_of(tree[1])})"
    if tree[0] in ("and", "or"):
        return f"({text_of(tree[1])}) {tree[0]} ({text_of(tree[2])})"
    return " ".join(tree)


def value_of(tree: tuple) -> bool:
    if tree[0] == "not":
        return not value_of(tree[1])
    if tree[0] == "and":
        return value_of(tree[1]) and value_of(tree[2])
    if tree[0] == "or":
        return value_of(tree[1]) or value_of(tree[2])
    names = {**METRICS, **{f"incumbent.{name}": value for name, value in INCUMBENT.items()}}
    left, right = (names[each] if each in names else float(each) for each in (tree[0], tree[2]))
    return COMPARE[tree[1]](left, right)


@given(trees)
@settings(max_examples=200, deadline=None)
def test_a_gate_is_its_truth_table_and_every_refusal_has_two_numbers(tree: tuple) -> None:
    verdict = Gate.parse(text_of(tree)).judge(METRICS, INCUMBENT)
    assert verdict.passed is value_of(tree)
    assert bool(verdict.failures) is not verdict.passed
    for failure in verdict.failures:
        assert re.search(r" is false: -?[\d.]+ against -?[\d.]+$", failure), failure


@pytest.mark.filterwarnings("ignore::SyntaxWarning")
@given(st.text("abc01.<>=!&|()[]{}:'\"\\ ,+-*not drif_\n", max_size=40))
@settings(max_examples=300, deadline=None)
def test_any_text_is_a_gate_or_a_value_error(source: str) -> None:
    try:
        gate = Gate.parse(source)
    except ValueError:
        return
    assert isinstance(gate.judge({"a": 1.0}, {"a": 1.0}).passed, bool)
