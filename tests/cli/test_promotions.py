from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.domain.digest import digest_json
from orchestrator.domain.prompt_version import Artifact, Lineage, PromptRef, TrainedPrompt
from orchestrator.tracking.mlflow_mirror import Delivery
from tests.cli.conftest import Run, open_tutti


@pytest.fixture(autouse=True)
def versions(new_home: Path) -> None:
    """colour@1 to colour@3; production went from 1 to 2, by ann, and MLflow has heard it."""
    names = ("encoder", "prompt_embeddings", "curve")
    trained = TrainedPrompt(
        task="colour",
        config={"metric": "accuracy"},
        metrics={"accuracy": 0.75},
        artifacts={name: Artifact(digest_json(name), 10) for name in names},
        lineage=Lineage("tiny", "f" * 64, {"train": "d"}, {"train": 8}, "s", 7, "0.1.0"),
    )
    with open_tutti(new_home) as tutti:
        prompts = tutti.parts.prompts
        for number in (1, 2, 3):
            prompts.register(replace(trained, config={"metric": "accuracy", "seed": number}))
        prompts.promote(PromptRef("colour", 1), "production", "ann", "first")
        prompts.promote(PromptRef("colour", 2), "production", "ann", "better")
        for item in tutti.parts.outbox.pending():
            tutti.parts.outbox.delivered(item.id)


@pytest.fixture(autouse=True)
def no_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow is away: it takes seconds to import, and nothing here is about it."""
    away = Delivery(0, 1, "it is away")
    monkeypatch.setattr("orchestrator.sdk.Tutti.deliver", lambda self: away)


def test_promotion_says_from_where_to_where(run: Run) -> None:
    done = run("prompts", "promote", "colour@3", "--if-current", 2, "--reason", "best")
    assert (done.code, done.out) == (0, "colour@production: colour@2 -> colour@3\n")
    assert "MLflow has not heard yet (it will, later): it is away" in done.err
    again = run("prompts", "promote", "colour@3", "--if-current", 2, "--json").json
    assert (again["generation"], again["to_version"], again["reason"]) == (3, 3, "best")


def test_promotion_from_another_version_than_believed_exits_with_1(run: Run) -> None:
    done = run("prompts", "promote", "colour@3", "--if-current", 1)
    assert (done.code, done.out) == (1, "")
    assert "it points at colour@2 since" in done.err
    assert "moved there by ann, and was believed at version 1" in done.err
    assert "--if-current 2" in done.err


def test_forced_promotion_says_what_it_overrode(run: Run) -> None:
    done = run("prompts", "promote", "colour@3", "--when", "approvals >= 1", "--force")
    assert done.code == 0
    assert "forced, although approvals >= 1 is false: 0 against 1" in done.err
    table = run("prompts", "history", "colour").out
    assert "forced although approvals >= 1 is false: 0 against 1" in table


def test_rollback_goes_back_and_says_when_there_is_nothing_before(run: Run, new_home: Path) -> None:
    done = run("prompts", "rollback", "colour", "--reason", "it stammers")
    assert (done.code, done.out) == (0, "colour@production: colour@2 -> colour@1\n")
    done = run("prompts", "rollback", "colour")
    assert (done.code, done.out) == (2, "")
    assert "there is nothing to roll back to" in done.err
    assert "Traceback" not in done.err
    with open_tutti(new_home) as tutti:
        assert tutti.prompt("colour@production").number == 1
        assert tutti.parts.outbox.num_pending() == 1


def test_alias_is_taken_away_and_the_history_says_so(run: Run) -> None:
    assert run("prompts", "unset", "colour").code == 2  # which one is to be said
    one = ("prompts", "unset", "colour", "--alias", "production")
    assert run(*one, "--if-current", 1).code == 1
    done = run(*one, "--if-current", 2, "--reason", "retired")
    assert (done.code, done.out) == (0, "colour@production: colour@2 -> none\n")
    assert "MLflow has not heard yet (it will, later): it is away" in done.err
    again = run(*one, "--json").json
    assert (again["generation"], again["to_version"], again["reason"]) == (3, None, "retired")
    line = run("prompts", "history", "colour").out.splitlines()[1].split()
    assert line[:4] == ["production", "3", "2", "none"]
    assert line[-3:] == ["taken", "away", "retired"]
    (line,) = run("prompts", "at", again["promoted_at"]).out.splitlines()[1:]
    assert line.split()[:2] == ["colour@production", "none"]
    assert run("prompts", "show", "colour@production").code == 2
    back = run("prompts", "rollback", "colour")
    assert (back.code, back.out) == (0, "colour@production: none -> colour@2\n")


def test_rollback_takes_a_belief_and_prints_json(run: Run) -> None:
    assert run("prompts", "rollback", "colour", "--if-current", 3).code == 1
    moved = run("prompts", "rollback", "colour", "--if-current", 2, "--json").json
    assert (moved["from_version"], moved["to_version"], moved["restores"]) == (2, 1, 1)


def test_history_names_every_move(run: Run) -> None:
    run("prompts", "promote", "colour@3", "--to", "staging")
    run("prompts", "rollback", "colour")
    header, *lines = run("prompts", "history", "colour").out.splitlines()
    assert header.split()[:4] == ["alias", "generation", "from", "to"]
    assert [line.split()[:4] for line in lines] == [
        ["production", "3", "2", "1"],
        ["staging", "1", "none", "3"],
        ["production", "2", "1", "2"],
        ["production", "1", "none", "1"],
    ]
    assert "rollback" in lines[0]
    assert "better" in lines[2]
    found = run("prompts", "history", "colour", "--alias", "production", "--limit", 1, "--json")
    assert [move["generation"] for move in found.json] == [3]
    assert "--limit" in found.err


def test_history_of_what_is_not_there_says_what_is(run: Run, new_home: Path) -> None:
    done = run("prompts", "history", "color")
    assert (done.code, done.out) == (2, "")
    assert "did you mean 'colour'?" in done.err
    assert (
        "did you mean 'production'?"
        in run("prompts", "history", "colour", "--alias", "prodction").err
    )


def test_the_past_is_shown_by_a_time_with_its_zone(run: Run) -> None:
    second, first = run("prompts", "history", "colour", "--json").json
    (then,) = run("prompts", "at", first["promoted_at"], "--json").json
    assert then == first
    (line,) = run("prompts", "at", second["promoted_at"], "colour").out.splitlines()[1:]
    assert line.split()[:2] == ["colour@production", "2"]
    done = run("prompts", "at", "2001-01-01T00:00:00Z")
    assert (done.code, done.out) == (0, "")
    assert "no alias pointed anywhere" in done.err


@pytest.mark.parametrize(
    ("moment", "why"),
    [
        ("2026-01-31T12:00:00", "has no time zone"),
        ("2026-01-31", "has no time zone"),
        ("yesterday", "is not a time"),
        ("", "is not a time"),
        ("2026-13-31T12:00:00Z", "is not a time"),
    ],
)
def test_what_is_no_time_exits_with_2(run: Run, moment: str, why: str) -> None:
    done = run("prompts", "at", moment)
    assert (done.code, done.out) == (2, "")
    assert why in done.err
    assert "2026-01-31T12:00:00Z" in done.err


def test_the_far_ends_of_time_are_times(run: Run) -> None:
    assert run("prompts", "at", "9999-12-31T23:59:59Z", "--json").json
    assert run("prompts", "at", "0001-01-01T00:00:00Z", "--json").json == []
    for edge in ("9999-12-31T23:59:59-14:00", "0001-01-01T00:00:00+14:00"):
        assert run("prompts", "at", edge).code == 2


def test_python_has_the_same_verbs(new_home: Path) -> None:
    with open_tutti(new_home) as tutti:
        moved = tutti.promote("colour@3", if_current=2)
        assert tutti.at(moved.promoted_at) == [moved]
        assert tutti.rollback("colour", if_current=3).to_version == 2
        assert [move.generation for move in tutti.history("colour", limit=2)] == [4, 3]
        assert tutti.unset("colour", reason="retired", if_current=2).to_version is None
        assert tutti.promote("colour@3", if_current=0).generation == 6
