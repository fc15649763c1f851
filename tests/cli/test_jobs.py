from pathlib import Path

import pytest

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
