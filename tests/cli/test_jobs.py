import json
from pathlib import Path

import pytest

from orchestrator.domain.prompt_version import Lineage, TrainedPrompt
from tests.cli.conftest import Run, open_tutti
from tests.tiny import write_task


@pytest.fixture
def jobs(run: Run, home: Path, tasks: Path) -> list[str]:
    """The ids of two jobs: one queued, one failed."""
    specs = [write_task(tasks, "one"), write_task(tasks, "two")]
    ids = [job["id"] for job in run("submit", *specs, "--json").json]
    with open_tutti(home) as tutti:
        lease = tutti.parts.jobs.claim(ids[1], "host:1:1", 60)
        assert lease is not None
        tutti.parts.jobs.start(lease)
        tutti.parts.jobs.fail(lease, "the loss is not a finite number\nmore")
    return ids


def test_jobs_are_listed_newest_first(run: Run, jobs: list[str]) -> None:
    listed = run("jobs", "list", "--json").json
    assert [job["id"] for job in listed] == jobs[::-1]
    assert [job["state"] for job in listed] == ["failed", "queued"]
    table = run("jobs", "list").out.splitlines()
    assert table[0].split()[:3] == ["job", "task", "state"]
    assert "the loss is not a finite number" in table[1]


def test_jobs_are_chosen_by_state_and_task(run: Run, jobs: list[str]) -> None:
    assert [j["task"] for j in run("jobs", "list", "--state", "failed", "--json").json] == ["two"]
    assert [j["task"] for j in run("jobs", "list", "--task", "one", "--json").json] == ["one"]
    assert len(run("jobs", "list", "--limit", 1, "--json").json) == 1
    both = ["--state", "failed", "--state", "queued"]
    assert len(run("jobs", "list", *both, "--json").json) == 2


def test_a_job_is_shown_by_the_start_of_its_id(run: Run, jobs: list[str]) -> None:
    shown = run("jobs", "show", jobs[1][:8], "--json").json
    assert shown["id"] == jobs[1]
    assert shown["error"].startswith("the loss is not a finite number")
    assert [attempt["outcome"] for attempt in shown["attempts"]] == ["failed"]
    text = run("jobs", "show", jobs[1]).out
    assert "attempt 1  failed: the loss is not a finite number" in text
    assert "two" in text


def test_no_jobs_are_an_empty_list_and_a_hint(run: Run, home: Path) -> None:
    assert run("jobs", "list", "--json").json == []
    done = run("jobs", "list")
    assert (done.code, done.out) == (0, "")
    assert "tutti submit" in done.err


def test_a_sweep_shows_how_many_trials_are_left_and_then_all_of_them(
    run: Run, home: Path, tasks: Path
) -> None:
    sweep = {"over": {"training.learning_rate": [0.0123456, 0.02]}}
    (submitted,) = run("submit", write_task(tasks, "swept", sweep=sweep), "--json").json
    won = {"trial": 0, "values": {"training.learning_rate": 0.0123456}, "steps": 4, "best": 0.81}
    lost = {"trial": 1, "values": {"training.learning_rate": 0.02}, "steps": 2, "best": None}
    trials = [{**won, "state": "won"}, {**lost, "state": "stopped at step 2: rank 2 of 2"}]
    told = {"step": 2, "num_steps": 4, "loss": 1.0, "best": 0.5, "stage": "1 of 2 trials left"}
    with open_tutti(home) as tutti:
        parts = tutti.parts
        lease = parts.jobs.claim(submitted["id"], "host:1:1", 60)
        assert lease is not None
        parts.jobs.start(lease)
        lease = parts.jobs.heartbeat(lease, 60, told)
        shown = run("jobs", "show", submitted["id"]).out
        assert "stage      1 of 2 trials left" in shown
        assert "best       0.50" in shown
        base = tutti.base("tiny").fingerprint
        data = {
            "encoder": b"e",
            "prompt_embeddings": b"p",
            "sweep": json.dumps({"metric": "accuracy", "trials": trials}).encode(),
        }
        artifacts = {name: parts.artifacts.put_bytes(value) for name, value in data.items()}
        lineage = Lineage("tiny", base, {}, {}, "d" * 64, 0, "0.1.0", submitted["id"])
        trained = TrainedPrompt("swept", {"metric": "accuracy"}, {}, artifacts, lineage)
        parts.prompts.complete(lease, trained, None, "me")
    assert run("jobs", "show", submitted["id"], "--json").json["trials"] == trials
    table = run("jobs", "show", submitted["id"]).out.splitlines()[-3:]
    assert table[0].split() == ["trial", "training.learning_rate", "steps", "best"]
    assert table[1].split() == ["0", "0.01235", "4", "0.810", "won"]
    assert table[2].split()[:3] == ["1", "0.02", "2"]
    assert table[2].endswith("stopped at step 2: rank 2 of 2")
