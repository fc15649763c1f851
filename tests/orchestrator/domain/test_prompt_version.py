from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.domain.digest import digest_json
from orchestrator.domain.errors import InvalidInput
from orchestrator.domain.prompt_version import Artifact, Lineage, PromptRef, TrainedPrompt


@pytest.fixture
def trained() -> TrainedPrompt:
    names = ("encoder", "prompt_embeddings", "curve")
    return TrainedPrompt(
        task="colour",
        config={"template": "{x}{prompt:2}{y}", "answer": "y"},
        metrics={"accuracy": 0.5},
        artifacts={name: Artifact(digest_json(name), 10) for name in names},
        lineage=Lineage("tiny", "f" * 64, {"train": "d"}, {"train": 8}, "s", 0, "0.1.0"),
    )


def with_artifact(trained: TrainedPrompt, name: str) -> TrainedPrompt:
    changed = {**trained.artifacts, name: Artifact(digest_json("other"), 10)}
    return replace(trained, artifacts=changed)


def test_metrics_curves_and_lineage_do_not_count(trained: TrainedPrompt) -> None:
    lineage = replace(trained.lineage, job="j", parent=3, seed=9, datasets={}, code_version="x")
    same = [
        replace(trained, metrics={"accuracy": 1.0}),
        replace(trained, task="other"),
        replace(trained, lineage=lineage),
        with_artifact(trained, "curve"),
    ]
    assert {each.digest for each in same} == {trained.digest}


def test_weights_config_and_base_count(trained: TrainedPrompt) -> None:
    others = [
        with_artifact(trained, "encoder"),
        with_artifact(trained, "prompt_embeddings"),
        replace(trained, config={**trained.config, "answer": "z"}),
        replace(trained, lineage=replace(trained.lineage, base_fingerprint="e" * 64)),
    ]
    assert len({each.digest for each in (trained, *others)}) == len(others) + 1


def test_the_order_of_keys_does_not_count(trained: TrainedPrompt) -> None:
    turned = dict(reversed(trained.config.items()))
    assert replace(trained, config=turned).digest == trained.digest


@pytest.mark.parametrize(
    ("text", "task", "target"),
    [
        ("colour", "colour", None),
        ("colour@7", "colour", 7),
        ("colour@123456789", "colour", 123456789),
        ("colour@production", "colour", "production"),
        ("a.b-c@v2", "a.b-c", "v2"),
    ],
)
def test_references_are_read_and_written(text: str, task: str, target: object) -> None:
    ref = PromptRef.parse(text)
    assert ref == PromptRef(task, target)  # type: ignore[arg-type]
    assert str(ref) == text


@pytest.mark.parametrize(
    "text",
    [
        *("", "@", "@7", "colour@", "Colour", "colour@-1", "colour@Prod", "colour@a b"),
        *("colour@@7", "../x", "colour@../x", "colour@7\n", "colour\n", "a/b@1", "colour@1.5.."),
    ],
)
def test_what_is_no_reference_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="is not a prompt reference") as caught:
        PromptRef.parse(text)
    assert "TASK@NUMBER or TASK@ALIAS" in caught.value.remedy


@pytest.mark.parametrize("text", ["colour@0", "colour@007"])
def test_a_number_with_a_leading_zero_is_never_a_version(text: str) -> None:
    assert not isinstance(PromptRef.parse(text).target, int)


@given(st.text(max_size=20))
def test_any_text_is_a_reference_or_refused(text: str) -> None:
    try:
        ref = PromptRef.parse(text)
    except InvalidInput:
        return
    assert str(ref) == text
