import json
from pathlib import Path

import pytest

from orchestrator.domain.prompt_version import Lineage, TrainedPrompt
from orchestrator.log_archive import archive_logs
from tests.cli.conftest import Meanwhile, Run, hold, open_tutti
from tests.tiny import write_task


@pytest.fixture
def jobs(run: Run, home: Path, tasks: Path) -> list[str]:
    """The ids of two jobs: one queued, one failed."""
    specs = [write_task(tasks, "one"), write_task(tasks, "two")]
    ids = [job["id"] for job in run("submit", *specs, "--json").json]
    with open_tutti(home) as tutti:
        lease = hold(tutti, ids[1])
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
    won |= {"state": "won", "best_loss": 0.4, "best_step": 4}
    lost |= {"state": "stopped at step 2: rank 2 of 2", "best_loss": None, "best_step": 0}
    trials = [won, lost]
    told = {"step": 2, "num_steps": 4, "loss": 1.0, "best": 0.5, "stage": "1 of 2 trials left"}
    with open_tutti(home) as tutti:
        parts = tutti.parts
        lease = hold(tutti, submitted["id"])
        parts.jobs.heartbeat([lease], 60, {lease.job_id: told})
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


def test_jobs_are_chosen_by_owner(run: Run, home: Path, jobs: list[str]) -> None:
    with open_tutti(home) as tutti:
        owner = tutti.parts.actor
    assert len(run("jobs", "list", "--owner", owner, "--json").json) == 2
    assert run("jobs", "list", "--owner", "nobody", "--json").json == []


def test_a_shown_job_tells_what_happened_in_plain_words(run: Run, jobs: list[str]) -> None:
    told = run("jobs", "show", jobs[1]).out
    assert "attempt 1  failed: the loss is not a finite number" in told
    assert "the job's own fault" in told
    assert "attempt 1: taken by gang-1 (host:1:1)" in told
    assert "submitted by" in told
    shown = run("jobs", "show", jobs[1], "--json").json
    assert shown["attempts"][0]["fault"] == "user"
    assert [line["number"] for line in shown["lines"]] == sorted(
        line["number"] for line in shown["lines"]
    )


def test_a_job_that_waits_says_what_for(run: Run, home: Path, tasks: Path) -> None:
    first, second = write_task(tasks, "first"), write_task(tasks, "second")
    (one,) = run("submit", first, "--json").json
    done = run("submit", second, "--after", one["id"][:8], "--not-before", "+2h", "--json")
    (two,) = done.json
    assert two["after"] == [one["id"]]
    reasons = run("jobs", "show", two["id"], "--json").json["waits_for"]
    assert f"for jobs to succeed: {one['id'][:12]} (first, queued)" in reasons
    assert any(reason.startswith("not before 20") for reason in reasons)
    assert any("tutti controller" in reason for reason in reasons)
    text = run("jobs", "show", two["id"]).out
    assert "waits" in text
    run("jobs", "pause", two["id"])
    (paused,) = run("jobs", "show", two["id"], "--json").json["waits_for"]
    assert paused.startswith("paused: ")


def test_a_full_quota_is_a_reason_to_wait(run: Run, home: Path, tasks: Path) -> None:
    specs = [write_task(tasks, "one"), write_task(tasks, "two")]
    ids = [job["id"] for job in run("submit", *specs, "--json").json]
    with open_tutti(home) as tutti:
        tutti.parts.leadership.lead("host:1:1", 60, lambda _: False)
        owner = tutti.parts.actor
        hold(tutti, ids[0])
    run("jobs", "quota", owner, "--max-running", 1)
    (reason,) = run("jobs", "show", ids[1], "--json").json["waits_for"]
    assert reason == f"{owner} has 1 of at most 1 jobs running"
    assert run("jobs", "show", ids[0], "--json").json["waits_for"] == []


def test_logs_are_the_same_from_rows_and_from_the_artifact(
    run: Run, home: Path, jobs: list[str]
) -> None:
    before = run("jobs", "logs", jobs[1])
    assert len(before.out.splitlines()) > 2
    with open_tutti(home) as tutti:
        assert archive_logs(tutti.parts.jobs, tutti.parts.artifacts) == 1
        assert tutti.parts.jobs.log(jobs[1]) == []
        assert tutti.job(jobs[1]).log is not None
    assert run("jobs", "logs", jobs[1]) == before
    lines = run("jobs", "logs", jobs[1], "--json").out.splitlines()
    assert json.loads(lines[0])["text"].startswith("submitted by")


def test_following_a_log_ends_with_the_job(
    run: Run, home: Path, jobs: list[str], meanwhile: Meanwhile
) -> None:
    with open_tutti(home) as tutti:

        def train() -> None:
            lease = hold(tutti, jobs[0])
            tutti.parts.jobs.note([(jobs[0], "goes on after step 3")])
            tutti.parts.jobs.fail(lease, "NaN")

        meanwhile(train, *[lambda: None] * 100_000)
        done = run("jobs", "logs", jobs[0], "--follow")
    assert done.code == 0
    assert "goes on after step 3" in done.out
    assert "NaN" in done.out.splitlines()[-1]


def test_following_a_log_is_left_by_ctrl_c(run: Run, jobs: list[str], meanwhile: Meanwhile) -> None:
    meanwhile()
    done = run("jobs", "logs", jobs[0], "--follow")
    assert done.code == 0
    assert "submitted by" in done.out
    assert done.err == ""


def test_watching_prints_what_changes_until_ctrl_c(
    run: Run, home: Path, jobs: list[str], meanwhile: Meanwhile
) -> None:
    with open_tutti(home) as tutti:
        meanwhile(lambda: None, lambda: hold(tutti, jobs[0]))
        done = run("jobs", "list", "--watch")
    assert (done.code, done.err) == (0, "")
    assert [line.split()[1:3] for line in done.out.splitlines()] == [
        ["one", "queued"],
        ["two", "failed"],
        ["one", "running"],
    ]
