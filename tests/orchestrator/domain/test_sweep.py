"""A spec's sweep: which trials it means, and what is refused."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from orchestrator.domain.sweep import MAX_TRIALS, Range
from orchestrator.domain.task_spec import TaskSpec

MakeSpec = Callable[..., TaskSpec]
RATES = "training.learning_rate"


def values(spec: TaskSpec) -> list[dict[str, Any]]:
    return [spec.swept_values(trial) for trial in spec.trials().values()]


def refusal(make_spec: MakeSpec, sweep: Any, **changes: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        make_spec(sweep=sweep, **changes)
    return str(caught.value)


def test_a_spec_without_a_sweep_is_its_own_only_trial(make_spec: MakeSpec) -> None:
    spec = make_spec()
    assert spec.trials() == {"country-continent": spec}
    assert spec.swept_values(spec) == {}


def test_a_grid_is_every_combination(make_spec: MakeSpec) -> None:
    over = {RATES: [0.003, 0.01], "encoder.hidden_size": [64, 128]}
    spec = make_spec(sweep={"over": over}, training={"steps": 30})
    assert values(spec) == [
        {"encoder.hidden_size": 64, RATES: 0.003},
        {"encoder.hidden_size": 64, RATES: 0.01},
        {"encoder.hidden_size": 128, RATES: 0.003},
        {"encoder.hidden_size": 128, RATES: 0.01},
    ]
    trials = spec.trials()
    assert list(trials) == [f"country-continent/{index}" for index in range(4)]
    last = trials["country-continent/3"]
    alone = make_spec(encoder={"hidden_size": 128}, training={"steps": 30, "learning_rate": 0.01})
    assert last == alone
    assert last.digest() == alone.digest()


def test_any_field_of_the_encoder_or_the_training_can_be_swept(make_spec: MakeSpec) -> None:
    start = {"from": "text", "text": "a place"}
    stop = {"patience": 2}
    over = {
        "encoder.init": [None, start],
        "training.early_stop": [None, stop],
        "training.max_grad_norm": [None, 1.0],
    }
    found = values(make_spec(sweep={"over": over}))
    assert len(found) == 8
    assert found[-1] == {
        "encoder.init": start,
        "training.early_stop": stop,
        "training.max_grad_norm": 1.0,
    }


def test_equal_trials_are_one(make_spec: MakeSpec) -> None:
    sweep = {"over": {RATES: [0.01, "1e-2", 0.02, 0.01]}}
    assert values(make_spec(sweep=sweep)) == [{RATES: 0.01}, {RATES: 0.02}]


def test_a_random_search_follows_from_its_seed_alone(make_spec: MakeSpec) -> None:
    over = {
        "training.batch_size": {"low": 2, "high": 4},
        RATES: {"low": 1e-3, "high": 5e-2, "log": True},
        "encoder.type": ["mlp", "lstm"],
    }
    sweep = {"search": "random", "trials": 40, "over": over}
    first = values(make_spec(sweep=sweep))
    assert len(first) == 40
    assert {row["training.batch_size"] for row in first} == {2, 3, 4}
    assert {row["encoder.type"] for row in first} == {"mlp", "lstm"}
    assert all(1e-3 <= row[RATES] <= 5e-2 for row in first)
    assert sum(row[RATES] < 7e-3 for row in first) in range(10, 31)  # half, in the logarithm
    backwards = dict(reversed(over.items()))
    assert values(make_spec(sweep={**sweep, "over": backwards})) == first
    assert values(make_spec(sweep={**sweep, "seed": 1})) != first


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_a_range_is_never_left(data: st.DataObject) -> None:
    log = data.draw(st.booleans())
    low = data.draw(st.floats(1e-6, 1e3))
    high = low + data.draw(st.floats(1.0, 1e3))
    share = data.draw(st.floats(0, 1, exclude_max=True))
    each = Range(low=low, high=high, log=log)
    assert low <= each.at(share, is_whole=False) <= high
    whole = Range(low=round(low), high=round(low) + 7, log=log and round(low) > 0)
    assert whole.at(share, is_whole=True) in range(round(low), round(low) + 8)


def test_a_sweep_survives_json_and_is_part_of_the_digest(make_spec: MakeSpec) -> None:
    sweep = {
        "search": "random",
        "trials": 3,
        "over": {RATES: {"low": 0.1, "high": 0.2}, "encoder.init": [None, {"from": "vocabulary"}]},
        "halving": {"first": 5},
        "concurrent": 2,
    }
    spec = make_spec(sweep=sweep)
    again = TaskSpec.model_validate(spec.model_dump(mode="json"))
    assert again == spec
    assert again.trials() == spec.trials()
    assert again.digest() == spec.digest() != make_spec().digest()


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ({"over": {}}, "at least 1 item"),
        ({"over": {RATES: []}}, f"give at least one value for {RATES}"),
        ({"over": {RATES: 0.1}}, "valid tuple"),
        ({"over": {"training.lerning_rate": [1]}}, f"did you mean '{RATES}'? allowed are enc"),
        ({"over": {"evaluation.every": [1]}}, "'evaluation.every' cannot be swept"),
        ({"over": {"data.max_length": [9]}}, "'data.max_length' cannot be swept"),
        ({"over": {"template": ["{prompt:1}"]}}, "'template' cannot be swept"),
        ({"over": {"training": [{}]}}, "'training' cannot be swept"),
        ({"over": {RATES: [0.1, -1]}}, f"the trial with {{{RATES}: -1}}: learning_rate: Input sho"),
        ({"over": {RATES: [float("nan")]}}, "finite number"),
        ({"over": {"training.early_stop": [{}]}}, "give a patience, a target, or both"),
        ({"over": {"training.early_stop": [{"target": 2}]}}, "accuracy is at most 1"),
        ({"over": {RATES: {"low": 1, "high": 2}}}, f"a grid needs a list of values for {RATES}"),
        ({"over": {RATES: [1]}, "trials": 2}, "remove `trials`"),
        ({"over": {"training.seed": list(range(300))}}, f"300 trials, at most {MAX_TRIALS}"),
        ({"search": "random", "over": {RATES: [1]}}, "a random search needs `trials`"),
        ({"search": "random", "over": {RATES: [1]}, "trials": 999}, "less than or equal to 256"),
        (
            {"over": {RATES: [1]}, "halving": {"first": 100}},
            "halving.first is 100, not below the 1",
        ),
        (
            {"over": {RATES: [1]}, "halving": {"first": 1, "factor": 1}},
            "greater than or equal to 2",
        ),
        ({"over": {RATES: [1]}, "concurrent": 0}, "greater than or equal to 1"),
    ],
)
def test_a_wrong_sweep_is_refused_with_the_reason(
    make_spec: MakeSpec, sweep: dict[str, Any], message: str
) -> None:
    assert message in refusal(make_spec, sweep)


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ({"low": 2, "high": 1}, r"low \(2\) must be below high \(1\)"),
        ({"low": 0, "high": 1, "log": True}, "starts above 0, not at 0"),
        ({"low": 0, "hihg": 1}, "high"),
        ({"low": 0, "high": float("inf")}, "finite"),
    ],
)
def test_a_wrong_range_is_refused(bounds: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Range.model_validate(bounds)
