from pathlib import Path

from tests.cli.conftest import Run
from tests.tiny import write_task

SWEEP = {"over": {"training.learning_rate": [0.5, 0.25, 0.125]}}


def submit(run: Run, tasks: Path) -> str:
    """Submit a sweep of three as an array; its name."""
    spec = write_task(tasks, "swept", sweep=SWEEP, promote=None)
    done = run("submit", spec, "--array")
    assert done.code == 0, done.err
    assert len(done.out.splitlines()) == 3
    words = done.err.split()
    assert words[-2:] == ["3", "jobs"]
    return words[-3].rstrip(",")


def test_the_jobs_of_an_array_are_shown_by_trial(run: Run, home: Path, tasks: Path) -> None:
    array = submit(run, tasks)
    shown = run("jobs", "show", array)
    head, *rows = shown.out.splitlines()
    assert "training.learning_rate" in head
    assert [row.split()[0] for row in rows if "queued" in row] == ["0", "1", "2"]
    jobs = run("jobs", "show", array, "--json").json
    assert [job["array"]["values"] for job in jobs] == [
        {"training.learning_rate": rate} for rate in (0.5, 0.25, 0.125)
    ]
    one = run("jobs", "show", jobs[1]["id"])
    assert f"{array}, trial 1 of 3: training.learning_rate 0.25" in one.out
    assert len(run("jobs", "list", "--array", array, "--json").json) == 3
    assert run("jobs", "list", "--array", "array-0", "--json").json == []


def test_an_array_is_cancelled_and_tried_again_as_a_whole(
    run: Run, home: Path, tasks: Path
) -> None:
    array = submit(run, tasks)
    (first, *_) = run("jobs", "show", array, "--json").json
    assert run("jobs", "cancel", first["id"]).code == 0
    again = run("jobs", "retry", array, "--json")  # what it cannot be done to is left alone
    assert [job["id"] for job in again.json] == [first["id"]], again.err
    none = run("jobs", "retry", array)
    assert none.code != 0
    assert "no job of the array that this can be done to" in none.err
    done = run("jobs", "cancel", array, "--json")
    assert [job["state"] for job in done.json] == ["cancelled"] * 3, done.err
    assert [job["state"] for job in run("jobs", "retry", array, "--json").json] == ["queued"] * 3
    assert run("jobs", "set-priority", array, "7").code == 0
    assert {job["priority"] for job in run("jobs", "show", array, "--json").json} == {7}


def test_what_is_no_array_is_refused(run: Run, home: Path, tasks: Path) -> None:
    plain = write_task(tasks, "plain")
    done = run("submit", plain, "--array")
    assert done.code != 0
    assert "an array is of a spec with a sweep" in done.err
    missing = run("jobs", "show", "array-000000000000")
    assert missing.code != 0
    assert "there is no array array-000000000000" in missing.err
