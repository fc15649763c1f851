from pathlib import Path

import pytest

from orchestrator.domain.job import JobState
from tests.cli.conftest import Run, hold, open_tutti
from tests.tiny import write_task


@pytest.fixture
def ids(run: Run, home: Path, tasks: Path) -> list[str]:
    """Three jobs: one queued, one running, one failed."""
    specs = [write_task(tasks, name) for name in ("queued", "running", "failed")]
    found = [job["id"] for job in run("submit", *specs, "--json").json]
    with open_tutti(home) as tutti:
        hold(tutti, found[1])
        tutti.parts.jobs.fail(hold(tutti, found[2]), "NaN")
    return found


def state(home: Path, job_id: str) -> JobState:
    with open_tutti(home) as tutti:
        return tutti.job(job_id).state


def test_jobs_are_cancelled_a_line_each(run: Run, home: Path, ids: list[str]) -> None:
    done = run("jobs", "cancel", ids[0][:8], ids[1])
    assert done.code == 0
    assert [line.split()[1:] for line in done.out.splitlines()] == [
        ["queued", "cancelled"],
        ["running", "cancelled"],
    ]
    assert state(home, ids[1]) == JobState.CANCELLED
    assert "cancelled by" in run("jobs", "logs", ids[0]).out


def test_a_finished_job_cannot_be_cancelled(run: Run, home: Path, ids: list[str]) -> None:
    done = run("jobs", "cancel", ids[2])
    assert (done.code, done.out) == (2, "")
    assert "has already failed" in done.err
    assert "Traceback" not in done.err


def test_what_cannot_be_done_to_one_job_is_done_to_the_others(
    run: Run, home: Path, ids: list[str]
) -> None:
    done = run("jobs", "cancel", ids[2], ids[0])
    assert done.code == 1
    assert "has already failed" in done.err
    assert done.out.split()[1:] == ["queued", "cancelled"]


def test_an_unknown_job_stops_everything(run: Run, home: Path, ids: list[str]) -> None:
    done = run("jobs", "cancel", ids[0], "ffffffff")
    assert (done.code, done.out) == (2, "")
    assert "there is no job ffffffff" in done.err
    assert state(home, ids[0]) == JobState.QUEUED


def test_a_failed_job_is_retried(run: Run, home: Path, ids: list[str]) -> None:
    (job,) = run("jobs", "retry", ids[2], "--json").json
    assert (job["state"], job["error"]) == ("queued", None)
    done = run("jobs", "retry", ids[0])
    assert (done.code, done.out) == (2, "")
    assert "only a failed or cancelled job can be retried" in done.err


def test_a_retried_job_gets_a_new_time_limit(run: Run, ids: list[str]) -> None:
    assert run("jobs", "retry", ids[2], "--time-limit", "soon").code == 2
    (job,) = run("jobs", "retry", ids[2], "--time-limit", "2h", "--json").json
    assert (job["state"], job["time_limit_s"]) == ("queued", 7200)


def test_jobs_are_paused_and_resumed(run: Run, home: Path, ids: list[str]) -> None:
    done = run("jobs", "pause", ids[0], ids[1])
    assert [line.split(maxsplit=2)[2] for line in done.out.splitlines()] == [
        "paused",
        "running, pause asked",
    ]
    assert run("jobs", "resume", *ids[:2]).code == 0
    assert state(home, ids[0]) == JobState.QUEUED
    with open_tutti(home) as tutti:
        assert not tutti.job(ids[1]).is_pause_asked


@pytest.mark.parametrize("priority", [7, -7])
def test_a_priority_is_set(run: Run, home: Path, ids: list[str], priority: int) -> None:
    (job,) = run("jobs", "set-priority", ids[0], priority, "--json").json
    assert job["priority"] == priority


@pytest.mark.parametrize("priority", ["high", "1.5", "9999999", "-9999999"])
def test_a_priority_that_is_none_is_refused(
    run: Run, home: Path, ids: list[str], priority: str
) -> None:
    done = run("jobs", "set-priority", ids[0], priority)
    assert (done.code, done.out) == (2, "")
    assert priority in done.err
    assert "Traceback" not in done.err


def test_quotas_are_set_one_part_at_a_time_and_shown(run: Run, home: Path) -> None:
    assert run("jobs", "quota", "--json").json == []
    assert "no quotas" in run("jobs", "quota").err
    run("jobs", "quota", "ann", "--max-running", "3")
    (set_,) = run("jobs", "quota", "ann", "--share", "2.5", "--json").json
    assert set_ == {"owner": "ann", "max_running": 3, "share": 2.5}
    run("jobs", "quota", "ann", "--max-running", "none")
    assert run("jobs", "quota", "--json").json == [{**set_, "max_running": None}]
    assert run("jobs", "quota", "bob").out.split()[-3:] == ["bob", "none", "1"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max-running", "3"], "say whose quota"),
        (["ann", "--max-running", "-1"], "'-1' is not a number of jobs"),
        (["ann", "--max-running", "many"], "'many' is not a number of jobs"),
        (["ann", "--max-running", "99999999999"], "max_running is 99999999999"),
        (["ann", "--share", "0"], "the share is 0"),
        (["ann", "--share", "-2"], "the share is -2"),
        (["ann", "--share", "nan"], "the share is nan"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_quota_is_refused(run: Run, home: Path, arguments: list[str], message: str) -> None:
    done = run("jobs", "quota", *arguments)
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert "Traceback" not in done.err
    assert run("jobs", "quota", "--json").json == []
