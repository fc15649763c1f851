"""`Tutti.evaluate` with a real worker in this process: its figures are those of `compare`, its runs
are in the ledger and have reports."""

import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest

from orchestrator.domain.batch import BatchMode
from orchestrator.domain.batch_run import BatchState, ShardClaim, ShardDone
from orchestrator.domain.digest import digest_file
from orchestrator.domain.errors import InvalidInput, UnknownName
from orchestrator.inference.shard_worker import ShardWorker, WorkerPlan
from orchestrator.sdk import Tutti
from tests.orchestrator.questions.conftest import Register
from tests.tiny import colour_rows, write_rows


class Here:
    """One worker, in this process."""

    num_starts = 0

    def up(self) -> AbstractContextManager[None]:
        self.num_starts += 1
        return nullcontext()

    def answer(self, plan: WorkerPlan, claims: Sequence[ShardClaim]) -> Iterator[ShardDone]:
        worker = ShardWorker(plan)
        for claim in claims:
            yield worker.answer(claim)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows.jsonl", colour_rows(30))


def test_figures_are_those_of_compare(tutti: Tutti, register: Register, rows: Path) -> None:
    register(0)
    register(5, template="{prompt:4}{word} {colour}")
    pool = Here()
    found = tutti.evaluate(["colour@1", "colour@2"], rows, pool=pool)
    assert pool.num_starts == 1  # for both runs
    expected = tutti.compare("colour@1", "colour@2", rows)
    assert found.comparisons[0].hits == expected.hits
    assert found.comparisons[0].verdict == expected.verdict
    assert [each.hits for each in found.versions] == [expected.hits.a, expected.hits.b]
    assert [each.metric for each in found.versions] == ["accuracy", "accuracy"]
    assert (found.data_digest, found.notes) == (digest_file(rows), ())


def test_each_version_is_a_run_that_has_a_report(
    tutti: Tutti, register: Register, rows: Path, tmp_path: Path
) -> None:
    register(0)
    found = tutti.evaluate(["colour"], rows, output=tmp_path / "kept", pool=Here())
    (only,) = found.versions
    assert only.ref == "colour@1"
    assert tutti.batch_run(only.run).state is BatchState.SUCCEEDED
    report = tutti.batch_report(only.run[:8])
    assert report.versions[0].hits == only.hits
    assert report.versions[0].num_rows == 30
    assert report.facts.settings["prompt"] == "colour@1"
    with pytest.raises(InvalidInput, match="the folder is not empty"):
        tutti.evaluate(["colour"], rows, output=tmp_path / "kept", pool=Here())


def test_rows_that_name_tasks_go_to_their_own(
    tutti: Tutti, register: Register, tmp_path: Path
) -> None:
    register(0)
    register(1)
    register(0, task="word", template="{colour}:{prompt:4} {word}", answer="word", candidates=None)
    mixed = [
        {"task": task, "fields": row, "id": place}
        for place, row in enumerate(colour_rows(12))
        for task in ("colour", "word")
    ]
    data = tmp_path / "mixed.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in mixed))
    found = tutti.evaluate(["word@1", "colour@1", "colour@2"], data, pool=Here())
    assert [each.ref for each in found.versions] == ["word@1", "colour@1", "colour@2"]
    assert [each.report.num_rows for each in found.versions] == [12, 12, 12]
    assert [(c.a, c.b) for c in found.comparisons] == [("colour@1", "colour@2")]
    plain = tutti.compare(
        "colour@1", "colour@2", write_rows(tmp_path / "own.jsonl", colour_rows(12))
    )
    assert found.comparisons[0].hits == plain.hits


def test_given_answers_are_scored_and_judged(
    tutti: Tutti, register: Register, tmp_path: Path
) -> None:
    register(0, candidates=None)
    data = tmp_path / "rows.jsonl"
    rows = [row | {"options": ["red", "blue"]} for row in colour_rows(8)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = tutti.evaluate(["colour"], data, mode=BatchMode.SCORE, answers="options", pool=Here())
    (only,) = found.versions
    assert only.metric == "accuracy"
    assert only.hits is not None
    assert only.hits.num_rows == 8
    assert only.report.mean_log_likelihood is not None
    assert only.report.mean_log_likelihood < 0


def test_what_cannot_be_evaluated_writes_nothing(
    tutti: Tutti, register: Register, rows: Path
) -> None:
    register(0)
    for refs in (["colour@1", "colour"], ["nothing@1"], ["colour@9"]):
        with pytest.raises(InvalidInput):
            tutti.evaluate(refs, rows, pool=Here())
    with pytest.raises(InvalidInput, match="no such file"):
        tutti.evaluate(["colour"], rows.with_name("nowhere.jsonl"), pool=Here())
    assert tutti.batches() == []
    assert not (tutti.settings.home / "evaluations").exists()
    with pytest.raises(UnknownName):
        tutti.batch_report("abcdef")
