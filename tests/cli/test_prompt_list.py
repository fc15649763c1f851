"""`tutti prompts list`: filters and pages."""

from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.domain.digest import digest_json
from orchestrator.domain.prompt_version import Artifact, Lineage, TrainedPrompt
from tests.cli.conftest import Run, open_tutti


@pytest.fixture(autouse=True)
def five(home: Path) -> None:
    """word@1 to word@5, of accuracy 0.1 to 0.5."""
    artifacts = {name: Artifact(digest_json(name), 1) for name in ("encoder", "prompt_embeddings")}
    with open_tutti(home) as tutti:
        base = tutti.base("tiny").fingerprint
        lineage = Lineage("tiny", base, {}, {}, "s", 0, "0.1.0")
        first = TrainedPrompt("word", {"metric": "accuracy"}, {}, artifacts, lineage)
        for number in range(1, 6):
            config, metrics = {"metric": "accuracy", "n": number}, {"accuracy": number / 10}
            tutti.parts.prompts.register(replace(first, config=config, metrics=metrics))


def test_a_filter_chooses_versions(run: Run) -> None:
    listed = run("prompts", "list", "--where", "metrics.accuracy > 0.25 and base = tiny", "--json")
    assert [each["version"] for each in listed.json] == [5, 4, 3]
    listed = run("prompts", "list", "--where", "number < 3", "--task", "word", "--json")
    assert [each["version"] for each in listed.json] == [2, 1]
    nothing = run("prompts", "list", "--where", "base = elsewhere")
    assert (nothing.code, nothing.out, nothing.err) == (0, "", "no such prompt versions\n")


def test_a_full_page_says_how_to_see_the_next_one(run: Run) -> None:
    first = run("prompts", "list", "--limit", 2)
    assert first.err == "there may be more: add `--before word@4`\n"
    second = run("prompts", "list", "--limit", 2, "--before", "word@4", "--json")
    assert [each["version"] for each in second.json] == [3, 2]
    last = run("prompts", "list", "--limit", 2, "--before", "word@2")
    assert (last.out.count("word@"), last.err) == (1, "")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--where", "accuracy > 0.5"), "character 1: 'accuracy': not a field"),
        (("--where", "metrics.accuracy >"), "character 19: the filter ends too early"),
        (("--before", "word@9"), "word has no version 9; it has 1 to 5"),
        (("--before", "../word"), "not a prompt reference"),
    ],
)
def test_a_wrong_filter_or_page_exits_with_2(run: Run, options: tuple[str, str], says: str) -> None:
    done = run("prompts", "list", *options)
    assert (done.code, done.out) == (2, "")
    assert says in done.err
    assert "Traceback" not in done.err
