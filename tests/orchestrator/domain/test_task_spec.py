from collections.abc import Callable

import pytest
from pydantic import ValidationError

from orchestrator.domain.task_spec import TaskSpec, check_alias, check_name

MakeSpec = Callable[..., TaskSpec]


@pytest.mark.parametrize("name", ["a", "0", "a" * 100, "country-continent", "a.b_c-d", "7"])
def test_names_are_plain(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        *("", "A", "-a", ".a", "_a", "a/b", "../a", "a..b", "..", "a\n", "a b", "é", "a" * 101),
        *("a\x00", "a@b", "'; DROP TABLE jobs; --", "a\\b", "²"),
    ],
)
def test_other_names_are_refused_with_the_rule(name: str) -> None:
    with pytest.raises(ValueError, match="1 to 100 of a-z, 0-9"):
        check_name(name)


def test_an_alias_is_a_name_that_is_no_number() -> None:
    assert check_alias("production") == "production"
    assert check_alias("v2") == "v2"
    with pytest.raises(ValueError, match="'7' is a version's number"):
        check_alias("7")
    with pytest.raises(ValueError, match="is not a name"):
        check_alias("../x")


def test_the_digest_stays_what_it_was(make_spec: MakeSpec) -> None:
    expected = "d4a5ffadf954bb6b424ebcd150ad101a3d9b2c3edbfa36fa4e05a2d6e5e3c2c1"
    assert make_spec().digest() == expected
    assert make_spec().digest() == expected


def test_spelling_out_a_default_does_not_change_the_digest(make_spec: MakeSpec) -> None:
    data = {"train": "train.jsonl", "eval": "eval.jsonl", "truncate": None}
    spelled = make_spec(
        training={"steps": 100}, encoder={"type": "mlp"}, promote=None, chat=False, data=data
    )
    assert spelled.digest() == make_spec().digest()


@pytest.mark.parametrize(
    "change",
    [
        {"task": "other"},
        {"template": "{country}:{prompt:11} {continent}"},
        {"training": {"seed": 1}},
        {"training": {"learning_rate": 0.02}},
        {"encoder": {"type": "lstm"}},
        {"data": {"train": "other.jsonl", "eval": "eval.jsonl"}},
        {"candidates": ("Asia", "Europe")},
        {"promote": {"alias": "production"}},
        {"chat": True},
        {"data": {"train": "train.jsonl", "eval": "eval.jsonl", "truncate": "country"}},
    ],
)
def test_any_change_changes_the_digest(make_spec: MakeSpec, change: dict[str, object]) -> None:
    assert make_spec(**change).digest() != make_spec().digest()


def test_how_a_spec_with_patience_is_digested_stays_what_it_was(make_spec: MakeSpec) -> None:
    spec = make_spec(training={"early_stop": {"patience": 3}})
    assert spec.model_dump(mode="json")["training"]["early_stop"] == {"patience": 3}
    assert spec.digest() == "a015bcd9daed60c09fe20ddf0d65cf1a27678c781b55cce9706cdbb03a2c9977"
    target = make_spec(training={"early_stop": {"patience": 3, "target": 0.9}})
    assert target.digest() != spec.digest()
    assert TaskSpec.model_validate(target.model_dump(mode="json")) == target


@pytest.mark.parametrize(
    ("stop", "message"),
    [
        ({}, "give a patience, a target, or both"),
        ({"target": 90}, r"training\.early_stop\.target: accuracy is at most 1, .* reaches 90"),
        ({"target": -0.1}, "greater than or equal to 0"),
        ({"patience": 0}, "greater than or equal to 1"),
    ],
)
def test_an_early_stop_needs_a_rule_that_can_hold(
    make_spec: MakeSpec, stop: dict[str, float], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        make_spec(training={"early_stop": stop})


def test_a_loss_may_be_asked_to_fall_to_more_than_1(make_spec: MakeSpec) -> None:
    training = {"early_stop": {"target": 1.5}}
    assert make_spec(training=training, evaluation={"metric": "loss"}).training.early_stop


def test_a_spec_survives_json(make_spec: MakeSpec) -> None:
    data = {"train": "t", "eval": "e", "max_length": 64, "truncate": "country"}
    for spec in (
        make_spec(promote={"when": "accuracy > 0.5"}, sharding={"zero_stage": 3}),
        make_spec(chat=True, data=data),
    ):
        again = TaskSpec.model_validate(spec.model_dump(mode="json"))
        assert again == spec
        assert again.digest() == spec.digest()


def test_a_spec_does_not_change(make_spec: MakeSpec) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        make_spec().task = "other"
    with pytest.raises(ValidationError, match="frozen"):
        make_spec().training.steps = 1


def test_defaults_are_the_documented_ones(make_spec: MakeSpec) -> None:
    spec = make_spec()
    assert (spec.training.steps, spec.training.batch_size) == (100, 8)
    assert spec.training.learning_rate == 0.01
    assert spec.evaluation.metric == "accuracy"
    assert spec.promote is None
    assert spec.gate() is None
    assert make_spec(promote={}).promote.alias == "production"  # type: ignore[union-attr]


@pytest.mark.parametrize("stage", [1, 2, 4, "3"])
def test_only_stages_0_and_3_are_known(make_spec: MakeSpec, stage: object) -> None:
    with pytest.raises(ValidationError, match="Input should be 0 or 3"):
        make_spec(sharding={"zero_stage": stage})


def test_numbers_have_bounds(make_spec: MakeSpec) -> None:
    for part, values in {
        "training": [{"seed": -1}, {"seed": 2**32}, {"batch_size": 0}, {"max_grad_norm": 0}],
        "encoder": [{"hidden_size": 0}, {"num_layers": 17}, {"dropout": 1.0}],
        "evaluation": [{"every": 0}],
    }.items():
        for value in values:
            with pytest.raises(ValidationError):
                make_spec(**{part: value})


def test_two_candidates_are_the_least(make_spec: MakeSpec) -> None:
    assert make_spec(candidates=["a", "b"]).candidates == ("a", "b")
    for few in ([], ["a"]):
        with pytest.raises(ValidationError, match="at least 2"):
            make_spec(candidates=few)


def test_the_files_are_by_split(make_spec: MakeSpec) -> None:
    data = {"train": "a", "eval": "b", "test": "c"}
    assert make_spec(data=data).data.files() == data


@pytest.mark.parametrize("field", ["continent", "nothing", "prompt", ""])
def test_only_a_field_before_the_answer_can_give_way(make_spec: MakeSpec, field: str) -> None:
    data = {"train": "t", "eval": "e", "truncate": field}
    with pytest.raises(ValidationError, match=r"data\.truncate: .* its answer are: \{country\}"):
        make_spec(data=data)


@pytest.mark.parametrize("init", [{"from": "vocabulary"}, {"from": "text", "text": " a place"}])
def test_a_start_survives_json_under_its_own_key(make_spec: MakeSpec, init: dict[str, str]) -> None:
    spec = make_spec(encoder={"init": init})
    dumped = spec.model_dump(mode="json")
    assert dumped["encoder"]["init"] == init
    assert TaskSpec.model_validate(dumped) == spec
    assert spec.digest() != make_spec().digest()


@pytest.mark.parametrize(
    "init",
    [
        {"from": "text"},
        {"from": "text", "text": " \n"},
        {"from": "vocabulary", "text": "a"},
        {"from": "nowhere"},
        {"source": "vocabulary"},
        {"text": "a"},
    ],
)
def test_a_start_needs_its_text_and_no_other(make_spec: MakeSpec, init: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match="encoder.init"):
        make_spec(encoder={"init": init})


def test_how_a_base_is_held_and_whether_rows_are_shared_are_told_apart(make_spec: MakeSpec) -> None:
    split = make_spec(sharding={"zero_stage": 3})
    assert not split.is_data_parallel
    assert split.model_dump(mode="json")["sharding"] == {"zero_stage": 3}  # as it always was
    shared = make_spec(sharding={"data_parallel": True})
    assert shared.is_data_parallel
    assert shared.sharding is not None
    assert shared.sharding.zero_stage is None
    assert not make_spec().is_data_parallel
    with pytest.raises(ValidationError, match="valid boolean"):
        make_spec(sharding={"data_parallel": 2})
