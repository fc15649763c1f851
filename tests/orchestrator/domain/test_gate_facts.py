from dataclasses import replace
from datetime import UTC, datetime

import pytest

from orchestrator.domain.gate import Gate
from orchestrator.domain.gate_facts import facts_of
from orchestrator.domain.gate_term import FACTS
from orchestrator.domain.prompt_version import Artifact, Lineage, PromptVersion


@pytest.fixture
def version() -> PromptVersion:
    datasets = {"train": "a" * 64, "eval": "b" * 64, "test": "c" * 64}
    rows = {"train": 8, "eval": 4, "test": 2}
    lineage = Lineage("tiny", "f" * 64, datasets, rows, "s" * 64, 7, "0.1.0+g1.dirty")
    artifacts = {"encoder": Artifact("e" * 64, 1)}
    created = datetime(2026, 1, 1, tzinfo=UTC)
    return PromptVersion("colour", 3, "d" * 64, {}, {"accuracy": 0.5}, artifacts, lineage, created)


def test_every_fact_of_the_language_is_there(version: PromptVersion) -> None:
    facts = facts_of(version, 60.0, 2)
    assert facts.keys() == {*FACTS, "accuracy"}
    kinds = {name: "text" if isinstance(facts[name], str) else "number" for name in FACTS}
    assert kinds == {**FACTS, "age": "number"}
    assert (facts["age"], facts["approvals"], facts["test.rows"]) == (60.0, 2, 2)
    assert (facts["train.digest"], facts["seed"]) == ("a" * 64, 7)


def test_a_metric_cannot_pass_for_a_fact(version: PromptVersion) -> None:
    posing = replace(version, metrics={"approvals": 9.0, "age": 0.0})
    facts = facts_of(posing, 86_400.0, 0)
    assert not Gate.parse("approvals >= 1").judge(facts, None).passed
    assert not Gate.parse("age < 1h").judge(facts, None).passed
