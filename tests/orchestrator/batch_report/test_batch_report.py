"""Figures follow from the rows alone, and what is kept of them is bounded."""

import json
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.batch_report.answer_row import AnswerRow
from orchestrator.batch_report.batch_report import MAX_UNRESOLVED, count_rows
from orchestrator.batch_report.report_json import report_json
from orchestrator.batch_report.run_facts import RunFacts, ShardFacts
from orchestrator.domain.batch_run import TaskCount
from orchestrator.domain.paired_hits import Share
from tests.orchestrator.batch_report.conftest import make_rows, parse


def test_each_version_has_its_rows_hits_errors_and_tokens(facts: RunFacts) -> None:
    values = make_rows(100)
    report = count_rows(facts, parse(values))
    colour, word = report.versions
    assert (colour.name, colour.num_rows, colour.num_errors) == ("colour@1", 50, 0)
    num_hits = sum(value.get("answer") == "red" for value in values)
    assert colour.hits == Share(num_hits, 50)
    assert (word.name, word.num_rows, word.num_errors, word.hits) == ("word@2", 50, 10, None)
    assert (word.num_tokens, report.num_tokens) == (40 * 3, 120)
    assert (report.num_rows, report.num_errors) == (100, 10)
    assert (report.rows_per_s, report.tokens_per_s) == (10.0, 12.0)


def test_errors_that_differ_in_numbers_are_one_reason(facts: RunFacts) -> None:
    report = count_rows(facts, parse(make_rows(100)))
    (reason,) = report.versions[1].reasons
    assert (reason.num_rows, reason.row) == (10, 10)
    assert reason.example == "word@2: the row has 10 tokens"


def test_a_confusion_matrix_counts_what_was_answered_for_what(facts: RunFacts) -> None:
    report = count_rows(facts, parse(make_rows(100)))
    confusion = report.versions[0].confusion
    assert confusion is not None
    assert confusion.classes == ("blue", "red")
    hits = report.versions[0].hits
    assert hits is not None
    assert confusion.counts == ((0, 0), (50 - hits.num_hits, hits.num_hits))
    assert not confusion.is_pooled


def test_latency_is_weighted_by_rows_and_absent_without_shards(facts: RunFacts) -> None:
    shards = (ShardFacts(0, 90, 9.0), ShardFacts(1, 10, 100.0))
    report = count_rows(replace(facts, shards=shards), [])
    assert report.seconds_per_row(0.5) == pytest.approx(0.1)
    assert report.seconds_per_row(0.95) == pytest.approx(10.0)
    assert count_rows(replace(facts, shards=()), []).seconds_per_row(0.5) is None


def test_a_versions_seconds_are_its_part_of_the_positions(facts: RunFacts) -> None:
    counts = {"t@1": TaskCount(rows=10, positions=300), "t@2": TaskCount(rows=30, positions=100)}
    report = count_rows(replace(facts, shards=(ShardFacts(0, 40, 8.0, counts),)), [])
    assert report.seconds_per_row(0.5, "t@1") == pytest.approx(0.6)
    assert report.seconds_per_row(0.95, "t@2") == pytest.approx(2 / 30)
    assert report.seconds_per_row(0.5, "t@3") is None
    assert report.positions_per_s == 40.0


def test_scored_answers_are_judged_by_the_likeliest(facts: RunFacts) -> None:
    row = {"row": 1, "task": "t", "version": 1, "scores": {"a": -2.0, "b": -1.0}}
    rows = [row | {"expected": "b"}, row | {"row": 2, "expected": "a"}, row | {"row": 3}]
    (version,) = count_rows(facts, parse(rows)).versions
    assert version.hits == Share(1, 2)
    assert version.mean_log_likelihood == pytest.approx(-1.5)
    assert version.calibration is None


def test_rows_without_a_version_are_told_apart_by_task_up_to_a_bound(facts: RunFacts) -> None:
    rows = [{"row": i, "task": f"t{i}", "error": "unknown"} for i in range(1, 1001)]
    report = count_rows(facts, parse([*rows, {"row": 1001, "error": "not JSON"}]))
    assert len(report.versions) == MAX_UNRESOLVED + 1
    assert report.versions[-1].task is None
    assert report.versions[-1].num_rows == 1001 - MAX_UNRESOLVED
    assert (report.num_rows, report.num_errors) == (1001, 1001)


def test_memory_does_not_grow_with_the_rows(facts: RunFacts) -> None:
    def hostile(num_rows: int) -> Iterator[AnswerRow]:
        for row in range(1, num_rows + 1):
            text = f"{row}" * 40
            yield AnswerRow(row, "t", 1, text, 0.5, expected=text, tokens=1)
            yield AnswerRow(row, "t", 1, error="".join(chr(97 + int(c)) for c in str(row)))
            yield AnswerRow(row, f"unknown-{row}", None, error="no such task")

    def peak(num_rows: int) -> int:
        tracemalloc.start()
        report = count_rows(facts, hostile(num_rows))
        assert report.num_rows == 3 * num_rows
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    assert peak(20_000) < 1.2 * peak(4_000)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abcd"), st.floats(0, 1))))
def test_counts_add_up_whatever_the_rows(values: list[tuple[str, str, float]]) -> None:
    rows = [
        AnswerRow(row, "t", 1, answer, score, expected=expected)
        for row, (expected, answer, score) in enumerate(values, start=1)
    ]
    report = count_rows(RunFacts("r", "running"), rows)
    if not values:
        assert report.versions == ()
        return
    (version,) = report.versions
    assert version.hits == Share(sum(a == b for a, b, _ in values), len(values))
    assert version.confusion is not None
    assert sum(map(sum, version.confusion.counts)) == len(values)
    assert version.calibration is not None
    assert sum(each.num_rows for each in version.calibration.bins) == len(values)
    assert version.calibration.mean == pytest.approx(sum(v[2] for v in values) / len(values))


def test_the_json_is_plain_and_whole(facts: RunFacts) -> None:
    report = count_rows(
        facts, parse([*make_rows(20), {"row": 21, "task": "x\ud800", "error": "e"}])
    )
    found = json.loads(json.dumps(report_json(report), allow_nan=False, ensure_ascii=False))
    assert found["run"] == "run-1"
    assert found["pinned"] == {"colour@1": {"digest": "c" * 64, "base": "b" * 64}}
    assert found["versions"][0]["accuracy"]["known"] == 10
    assert len(found["versions"][0]["accuracy"]["interval"]) == 2
    assert found["versions"][2]["task"] == "x\\ud800"
    assert found["shards"] == {"finished": 4, "all": 4}
    json.dumps(found, ensure_ascii=False).encode()
