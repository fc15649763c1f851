from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.domain.digest import digest_json
from orchestrator.domain.prompt_version import Artifact, Lineage, PromptRef, TrainedPrompt
from tests.cli.conftest import Run, open_tutti

CONFIG = {
    "template": "{word}:{prompt:4} {colour}",
    "num_virtual_tokens": 4,
    "metric": "accuracy",
    "candidates": ["blue", "red"],
    "encoder": {"type": "mlp"},
}


@pytest.fixture
def trained() -> TrainedPrompt:
    names = ("encoder", "prompt_embeddings", "curve")
    return TrainedPrompt(
        task="colour",
        config=CONFIG,
        metrics={"accuracy": 0.75, "manual_accuracy": 0.5, "held_out_rows": 8.0, "seconds": 3.0},
        artifacts={name: Artifact(digest_json(name), 10) for name in names},
        lineage=Lineage("tiny", "f" * 64, {"train": "d"}, {"train": 8}, "s", 7, "0.1.0"),
    )


@pytest.fixture(autouse=True)
def versions(home: Path, trained: TrainedPrompt) -> None:
    """colour@1 in production, and a worse colour@2."""
    with open_tutti(home) as tutti:
        prompts = tutti.parts.prompts
        prompts.register(trained)
        prompts.promote(PromptRef("colour", 1), "production", "ann", "first")
        worse = replace(trained, config={**CONFIG, "seed": 2}, metrics={"accuracy": 0.25})
        prompts.register(worse)


def test_versions_are_an_array_of_objects(run: Run) -> None:
    listed = run("prompts", "list", "--json").json
    assert [(each["task"], each["version"]) for each in listed] == [("colour", 2), ("colour", 1)]
    assert {"task", "version", "digest", "aliases", "metrics"} <= set(listed[0])
    assert [each["aliases"] for each in listed] == [[], ["production"]]
    assert listed[1]["metrics"]["accuracy"] == 0.75


def test_versions_are_chosen_by_task_and_alias(run: Run) -> None:
    assert len(run("prompts", "list", "--alias", "production", "--json").json) == 1
    assert run("prompts", "list", "--task", "nothing", "--json").json == []
    assert len(run("prompts", "list", "--limit", 1, "--json").json) == 1


def test_the_table_names_versions_and_aliases(run: Run) -> None:
    lines = run("prompts", "list").out.splitlines()
    assert [line.split()[0] for line in lines] == ["prompt", "colour@2", "colour@1"]
    assert "production" in lines[2]


def test_the_evidence_stands_beside_the_manual_prompt(run: Run) -> None:
    header, worse, better = run("prompts", "list", "--evidence").out.splitlines()
    assert "manual" in header
    assert {"0.500", "0.750", "yes"} <= set(better.split())
    assert "0.250" in worse


@pytest.mark.parametrize("ref", ["colour@1", "colour@production"])
def test_one_version_is_shown_with_its_lineage(run: Run, ref: str) -> None:
    shown = run("prompts", "show", ref, "--json").json
    assert (shown["ref"], shown["lineage"]["seed"]) == ("colour@1", 7)
    text = run("prompts", "show", ref).out
    assert "colour@1" in text
    assert "blue, red" in text
    assert "f" * 64 in text


def test_a_task_alone_is_its_newest_version(run: Run) -> None:
    assert run("prompts", "show", "colour", "--json").json["version"] == 2


def test_an_unknown_version_or_alias_says_what_there_is(run: Run) -> None:
    done = run("prompts", "show", "colour@9")
    assert (done.code, done.out) == (2, "")
    assert "colour has no version 9; it has 1 to 2" in done.err
    assert "did you mean 'production'?" in run("prompts", "show", "colour@prodction").err


def test_a_refused_gate_exits_with_1_and_both_numbers(run: Run, home: Path) -> None:
    done = run("prompts", "promote", "colour@2", "--when", "accuracy > incumbent.accuracy")
    assert (done.code, done.out) == (1, "")
    assert "accuracy > incumbent.accuracy is false: 0.25 against 0.75" in done.err
    assert "Traceback" not in done.err
    with open_tutti(home) as tutti:
        assert tutti.prompt("colour@production").number == 1


@pytest.mark.parametrize("when", ["print(1) > 0", "accuracy", "accuracy >", "accuracy > 1e999"])
def test_a_gate_that_cannot_be_read_exits_with_2(run: Run, when: str) -> None:
    done = run("prompts", "promote", "colour@2", "--when", when)
    assert (done.code, done.out) == (2, "")
    assert "Traceback" not in done.err


@pytest.mark.parametrize("alias", ["../x", "7", "Production"])
def test_an_alias_that_is_no_name_exits_with_2(run: Run, alias: str) -> None:
    done = run("prompts", "promote", "colour@2", "--to", alias)
    assert (done.code, done.out) == (2, "")
    assert repr(alias) in done.err
