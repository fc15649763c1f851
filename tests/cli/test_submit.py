from pathlib import Path

from tests.cli.conftest import Run
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
