import re
from pathlib import Path

import pytest

from orchestrator.domain.digest import digest_json
from orchestrator.domain.prompt_version import Artifact, Lineage, TrainedPrompt
from tests.cli.conftest import Run, open_tutti

CONFIG = {
    "template": "{word}:{prompt:4} {colour}",
    "num_virtual_tokens": 4,
    "metric": "accuracy",
    "candidates": ["blue", "red"],
    "encoder": {"type": "mlp"},
}


@pytest.fixture(autouse=True)
def version(new_home: Path) -> None:
    """colour@1, by ann."""
    names = ("encoder", "prompt_embeddings", "curve")
    lineage = Lineage(
        *("tiny", "f" * 64, {"train": "d"}, {"train": 8}, "s", 7, "0.1.0+g1.dirty"),
        attempt=2,
        author="ann",
        packages={"torch": "2.13.0"},
        hardware="Zen 9, 2 threads",
        job="j" * 32,
    )
    artifacts = {name: Artifact(digest_json(name), 10) for name in names}
    with open_tutti(new_home) as tutti:
        tutti.parts.prompts.register(
            TrainedPrompt("colour", CONFIG, {"accuracy": 0.75}, artifacts, lineage)
        )


def act_as(monkeypatch: pytest.MonkeyPatch, actor: str) -> None:
    monkeypatch.setattr("getpass.getuser", lambda: actor)


def test_people_approve_and_withdraw(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    act_as(monkeypatch, "bob")
    done = run("prompts", "approve", "colour@1", "--note", "looks right")
    assert done.out == "colour@1 is approved by bob\n"
    act_as(monkeypatch, "cid")
    given = run("prompts", "approve", "colour", "--json").json
    assert [(each["actor"], each["note"]) for each in given] == [
        ("bob", "looks right"),
        ("cid", ""),
    ]
    assert run("prompts", "approve", "colour@1", "--withdraw").out.endswith("by bob\n")
    assert re.search(r"approved by +bob\n", run("prompts", "show", "colour@1").out)


def test_author_who_approves_exits_with_2(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    act_as(monkeypatch, "ann")
    done = run("prompts", "approve", "colour@1")
    assert (done.code, done.out) == (2, "")
    assert "ann is the author of colour@1" in done.err
    assert run("prompts", "approve", "colour@1", "--withdraw").code == 2


def test_tags_and_description_are_shown_with_their_history(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    act_as(monkeypatch, "bob")
    run("prompts", "tag", "colour@1", "team=nlp", "note=a=b", "empty=")
    changed = run("prompts", "tag", "colour@1", "team=vision", "empty-", "--json").json
    assert changed["tags"] == {"team": "vision", "note": "a=b"}
    assert run("prompts", "describe", "colour@1", "the first").out.splitlines() == [
        "colour@1: the first",
        "  note=a=b",
        "  team=vision",
    ]
    shown = run("prompts", "show", "colour@1", "--json").json
    assert (shown["description"], shown["tags"]["team"]) == ("the first", "vision")
    assert shown["changes"][0]["new"] == "the first"
    assert {each["actor"] for each in shown["changes"]} == {"bob"}
    text = run("prompts", "show", "colour@1").out
    for words in ("the first", "tag team", "vision", "description or tag", "bob"):
        assert words in text
    assert run("prompts", "describe", "colour@1", "").out.startswith("colour@1: no description")


def test_lineage_is_shown_in_full(run: Run) -> None:
    lineage = run("prompts", "show", "colour@1", "--json").json["lineage"]
    assert (lineage["is_dirty"], lineage["attempt"], lineage["author"]) == (True, 2, "ann")
    assert (lineage["packages"], lineage["hardware"]) == ({"torch": "2.13.0"}, "Zen 9, 2 threads")
    text = run("prompts", "show", "colour@1").out
    for words in ("2.13.0", "Zen 9, 2 threads", "attempt 2", "ann", ".dirty"):
        assert words in text


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        (["team"], "'team' changes no tag"),
        (["a=1", "a-"], "the tag 'a' is given twice"),
        (["=x"], "'' is not a name"),
        (["Team=x"], "'Team' is not a name"),
        (["none-"], "no tag of colour@1 'none'"),
        (["a=" + "x" * 1001], "at most 1000"),
    ],
)
def test_what_is_no_change_of_tags_exits_with_2(run: Run, changes: list[str], why: str) -> None:
    done = run("prompts", "tag", "colour@1", *changes)
    assert (done.code, done.out) == (2, "")
    assert why in done.err
    assert run("prompts", "show", "colour@1", "--json").json["tags"] == {}


def test_unknown_version_is_named(run: Run) -> None:
    for command in (["approve"], ["tag", "a=1"], ["describe", "x"]):
        done = run("prompts", command[0], "colour@9", *command[1:])
        assert (done.code, done.out) == (2, "")
        assert "colour has no version 9" in done.err
