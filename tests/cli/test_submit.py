from pathlib import Path

from tests.cli.conftest import Meanwhile, Run, hold, open_tutti
from tests.tiny import colour_rows, write_rows, write_task


def test_specs_are_queued_a_line_each(run: Run, home: Path, tasks: Path) -> None:
    specs = [write_task(tasks, "one"), write_task(tasks, "two")]
    done = run("submit", *specs)
    assert done.code == 0
    lines = [line.split() for line in done.out.splitlines()]
    assert [line[1:] for line in lines] == [["one", "queued"], ["two", "queued"]]
    again = run("submit", *specs)
    assert [line.split(maxsplit=1)[0] for line in again.out.splitlines()] == [x[0] for x in lines]
    assert "unchanged, queued" in again.out


def test_json_holds_the_jobs(run: Run, home: Path, tasks: Path) -> None:
    spec = write_task(tasks, "one")
    (job,) = run("submit", spec, "--json").json
    assert (job["task"], job["state"], job["is_new"]) == ("one", "queued", True)
    (again,) = run("submit", spec, "--json").json
    assert (again["id"], again["is_new"]) == (job["id"], False)
    (forced,) = run("submit", spec, "--force", "--json").json
    assert forced["id"] != job["id"]


def test_a_warning_goes_to_stderr(run: Run, home: Path, tasks: Path) -> None:
    spec = write_task(tasks, "one")
    write_rows(tasks / "data/one.eval.jsonl", colour_rows(4))
    done = run("submit", spec)
    assert done.code == 0
    assert "one: 4 of 4 eval rows also stand in the training data" in done.err
    assert "rows" not in done.out


def test_paths_may_be_relative(run: Run, home: Path, tasks: Path) -> None:
    write_task(tasks, "one")
    assert run("submit", "one.yaml").code == 0


def test_waiting_ends_with_the_jobs_and_tells_by_its_exit_code(
    run: Run, home: Path, tasks: Path, meanwhile: Meanwhile
) -> None:
    spec = write_task(tasks, "one")
    with open_tutti(home) as tutti:

        def train() -> None:
            (job,) = tutti.jobs()
            tutti.parts.jobs.fail(hold(tutti, job.id), "the loss is not a finite number")

        meanwhile(train, *[lambda: None] * 100_000)
        done = run("submit", spec, "--wait")
    assert done.code == 1
    assert done.out.split()[1:] == ["one", "failed"]


def test_following_tells_the_log_and_the_end(
    run: Run, home: Path, tasks: Path, meanwhile: Meanwhile
) -> None:
    spec = write_task(tasks, "one")
    with open_tutti(home) as tutti:

        def train() -> None:
            (job,) = tutti.jobs()
            tutti.parts.jobs.fail(hold(tutti, job.id), "NaN")

        meanwhile(train, *[lambda: None] * 100_000)
        done = run("submit", spec, "--follow", "--json")
    said = done.err
    assert done.code == 1
    assert "one: attempt 1: taken by gang-1 (host:1:1)" in said
    assert "one: failed: NaN" in said


def test_ctrl_c_ends_the_waiting_alone(
    run: Run, home: Path, tasks: Path, meanwhile: Meanwhile
) -> None:
    meanwhile()
    done = run("submit", write_task(tasks, "one"), "--wait")
    assert (done.code, done.out) == (1, "")
    assert "stopped watching; the jobs stay as they are" in done.err
    with open_tutti(home) as tutti:
        assert [job.state for job in tutti.jobs()] == ["queued"]


def test_waiting_for_what_is_done_already_returns_at_once(
    run: Run, home: Path, tasks: Path, meanwhile: Meanwhile
) -> None:
    spec = write_task(tasks, "one")
    (job,) = run("submit", spec, "--json").json
    run("jobs", "cancel", job["id"])
    meanwhile()
    with open_tutti(home) as tutti:
        tutti.submit([spec])  # queues it again
        tutti.cancel(job["id"])
        assert [each.state for each in tutti.wait([job["id"]])] == ["cancelled"]
