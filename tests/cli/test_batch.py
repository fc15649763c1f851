"""`tutti batch` without Ray: what is refused before anything starts, and what the ledger tells."""

import json
from pathlib import Path

import pytest

from orchestrator.batch.progress import Progress
from orchestrator.batch.start import run_batch
from orchestrator.cli.batch_view import describe
from orchestrator.domain.errors import TuttiError
from orchestrator.domain.prompt_version import PromptRef
from tests.cli.conftest import Run, contents, open_tutti
from tests.orchestrator.batch.conftest import Files, InlinePool, register, write_rows

MISSING = ["batch", "run", "--input", "none.jsonl", "--output", "out.jsonl"]


@pytest.fixture
def run_id(home: Path, tasks: Path) -> str:
    """A run that failed at its fourth shard of six."""
    files = Files(write_rows(tasks / "in.jsonl", 23), tasks)

    def fail(number: int) -> None:
        if number == 3:
            raise TuttiError("the disk is full")

    with open_tutti(home) as tutti:
        for seed, (task, candidates) in enumerate(
            {"colour": ("red", "blue"), "mood": ("good", "bad"), "spelled": None}.items()
        ):
            register(tutti.parts, task, candidates, seed)
            tutti.parts.prompts.promote(PromptRef(task, 1), "production", "ann")
        with pytest.raises(TuttiError):
            run_batch(tutti.parts, files.request(), None, InlinePool(fail))
        return tutti.batches()[0].id


def test_a_run_is_listed_and_shown(run: Run, run_id: str, tasks: Path) -> None:
    (listed,) = run("batch", "list", "--json").json
    assert (listed["id"], listed["state"], listed["can_resume"]) == (run_id, "failed", True)
    shown = run("batch", "show", run_id[:8], "--json").json
    assert shown["error"] == "the disk is full"
    assert shown["manifest"] == f"{tasks / 'answers.jsonl'}.manifest.json"
    assert shown["pins"]["colour@production"]["number"] == 1
    assert [s["state"] for s in shown["shards"]] == ["done"] * 3 + ["queued"] * 3
    assert shown["counts"]["colour@1"]["rows"] == 5
    text = run("batch", "show", run_id[:8]).out
    assert "12 of 23, 2 errors" in text
    assert "the disk is full" in text
    assert run_id[:12] in run("batch", "list").out
    assert run("batch", "list", "--state", "succeeded").err.startswith("there is no batch run")


def test_a_cancelled_run_is_not_resumed(run: Run, run_id: str) -> None:
    assert run("batch", "cancel", run_id, "--json").json["state"] == "cancelled"
    refused = run("batch", "resume", run_id)
    assert refused.code == 2
    assert "is cancelled: there is nothing to resume" in refused.err


def test_a_run_is_not_resumed_over_another_input(run: Run, run_id: str, tasks: Path) -> None:
    with (tasks / "in.jsonl").open("a") as file:
        file.write("more\n")
    refused = run("batch", "resume", run_id)
    assert refused.code == 2
    assert "in.jsonl: has changed since the run started" in refused.err
    assert "Traceback" not in refused.err


@pytest.mark.parametrize("name", ["abcdef", "x", "../x"])
@pytest.mark.parametrize("verb", ["show", "resume", "cancel", "report"])
def test_an_unknown_run_is_named(run: Run, home: Path, verb: str, name: str) -> None:
    refused = run("batch", verb, name)
    assert refused.code == 2
    assert name in refused.err
    assert "tutti batch list" in refused.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "none.jsonl: no such file"),
        (["--top-p", "1.5", "--do-sample"], "top_p"),
        (["--temperature", "0", "--do-sample"], "temperature"),
        (["--num-beams", "0"], "num_beams"),
        (["--stop", ""], "stop"),
        (["--max-new-tokens", "0"], "max_new_tokens"),
        (["--format", "parquet"], "the format given is parquet"),
        (["--prompt", "no prompt"], "is not a prompt reference"),
        (["--shard-rows", "0"], "0 rows a shard"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    run: Run, home: Path, tasks: Path, options: list[str], message: str
) -> None:
    before = contents(home)
    done = run(*MISSING, *options)
    assert done.code == 2
    assert message in done.err
    assert "Traceback" not in done.err
    assert contents(home).keys() == before.keys()
    assert list(tasks.iterdir()) == []


def test_an_unknown_prompt_is_refused_before_ray_is_started(
    run: Run, home: Path, tasks: Path
) -> None:
    (tasks / "in.csv").write_text("word\nab\n")
    done = run(
        "batch", "run", "--input", "in.csv", "--output", "o", "--prompt", "nobody@production"
    )
    assert done.code == 2
    assert "there is no task 'nobody'" in done.err
    assert [path.name for path in tasks.iterdir()] == ["in.csv"]
    assert run("batch", "list", "--json").json == []


def test_progress_is_told_in_words() -> None:
    progress = Progress("a" * 32, 1000, 250, 3, 50, 10.0, {})
    assert describe(progress) == "250 of 1000 rows, 3 errors, 0 tasks, 20.0 rows/s, 38s left"
    assert describe(Progress("a" * 32, 9, 0, 0)) == "0 of 9 rows, 0 errors, 0 tasks"
    slow = Progress("a" * 32, 100_000, 100, 0, 0, 10.0)
    assert describe(slow).endswith("10.0 rows/s, 2h46m left")
    assert json.dumps(progress.left_s) == "37.5"
