"""`tutti evaluate` and `tutti batch report`, for people and for scripts; a worker in this process
answers in place of Ray's."""

import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest

from orchestrator.batch import ray_pool
from orchestrator.bootstrap import Parts
from orchestrator.domain.batch_run import ShardClaim, ShardDone
from orchestrator.inference.shard_worker import ShardWorker, WorkerPlan
from tests.cli import test_prompt_questions
from tests.cli.conftest import Run
from tests.tiny import colour_rows, write_rows

two_versions = test_prompt_questions.two_versions


class Here:
    """One worker, in this process."""

    def __init__(self, parts: Parts, note: object) -> None:
        self.parts = parts

    def up(self) -> AbstractContextManager[None]:
        return nullcontext()

    def answer(self, plan: WorkerPlan, claims: Sequence[ShardClaim]) -> Iterator[ShardDone]:
        worker = ShardWorker(plan)
        for claim in claims:
            yield worker.answer(claim)


@pytest.fixture
def data(tasks: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(ray_pool, "RayPool", Here)
    return write_rows(tasks / "rows.jsonl", colour_rows(12))


def test_an_evaluation_has_a_verdict_and_its_runs_have_reports(run: Run, data: Path) -> None:
    found = run("evaluate", "colour@1", "colour@2", "--data", data, "--json").json
    compared = run("prompts", "compare", "colour@1", "colour@2", "--data", data, "--json").json
    assert [each["ref"] for each in found["versions"]] == ["colour@1", "colour@2"]
    assert [each["share"]["known"] for each in found["versions"]] == [12, 12]
    (comparison,) = found["comparisons"]
    assert comparison["verdict"] == compared["verdict"]
    assert comparison["p_value"] == compared["p_value"]

    run_id = found["versions"][1]["run"]
    report = run("batch", "report", run_id[:8], "--output", "r.html", "--json")
    assert report.err == "written: r.html\n"
    (version,) = report.json["versions"]
    assert version["accuracy"]["right"] == found["versions"][1]["share"]["right"]
    assert (report.json["run"], report.json["num_rows"]) == (run_id, 12)
    page = (data.parent / "r.html").read_text()
    assert page.startswith("<!doctype html>")
    assert "colour@2" in page
    text = run("batch", "report", run_id)
    assert text.out.splitlines()[1].split()[:3] == ["colour@2", "12", "0"]
    assert "succeeded: 12 rows, 0 errors" in text.err


def test_one_version_has_figures_alone(run: Run, data: Path) -> None:
    done = run("evaluate", "colour", "--data", data)
    assert done.code == 0, done.err
    head, only = done.out.splitlines()
    assert head.split()[0] == "prompt"
    assert only.split()[:2] == ["colour@2", "accuracy"]


def test_rows_with_faults_are_counted_and_the_first_one_is_named(run: Run, data: Path) -> None:
    with data.open("a") as file:
        file.write(json.dumps({"word": "x" * 400, "colour": "red"}) + "\n")
        file.write("not JSON\n")
    found = run("evaluate", "colour@1", "--data", data, "--json").json
    (only,) = found["versions"]
    assert (only["num_rows"], only["num_errors"]) == (14, 2)
    assert any("gave 2 of 14 rows an error and no answer, row 13" in n for n in found["notes"])


@pytest.mark.parametrize(
    "command",
    [
        ("evaluate", "colour@1", "--data", "nowhere.jsonl"),
        ("evaluate", "colour@9", "--data", "rows.jsonl"),
        ("evaluate", "colour@1", "colour@1", "--data", "rows.jsonl"),
        ("evaluate", "../x", "--data", "rows.jsonl"),
        ("evaluate", "--data", "rows.jsonl"),
        ("evaluate", "colour", "--data", "rows.jsonl", "--mode", "embed"),
        ("evaluate", "colour", "--data", "rows.jsonl", "--output", "."),
        ("evaluate", "colour", "--data", "rows.jsonl", "--against", "manual"),  # no job made it
        ("evaluate", "colour", "--data", "rows.jsonl", "--against", "colour@1"),
        ("batch", "report", "abcdef12"),
        ("batch", "report", "../x"),
        ("batch", "report", "abcdef12", "--output", "x.pdf"),
    ],
)
def test_wrong_input_exits_with_2_and_writes_nothing(
    run: Run, data: Path, command: tuple[str, ...]
) -> None:
    before = sorted(data.parent.iterdir())
    done = run(*command)
    assert (done.code, done.out) == (2, "")
    assert "Traceback" not in done.err
    assert sorted(data.parent.iterdir()) == before
    assert run("batch", "list", "--json").json == []
