"""Outputs of batch runs over the same rows are counted together, and the verdict follows."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.batch_report.answer_row import AnswerRow
from orchestrator.batch_report.part_reader import OutputFile
from orchestrator.domain.batch import BatchMode, BatchSettings
from orchestrator.domain.errors import IntegrityError, InvalidInput
from orchestrator.domain.paired_hits import PairedHits, Share
from orchestrator.domain.prompt_version import Lineage, PromptVersion
from orchestrator.questions.evaluation import (
    Contender,
    Evaluation,
    Finished,
    check_evaluation,
    count_together,
    evaluate,
    paired,
)
from orchestrator.questions.own_rows import OwnRows

DATA = "d" * 64


def version(number: int, task: str = "colour", **config: Any) -> PromptVersion:
    lineage = Lineage("tiny", "f" * 64, {"eval": DATA} if number == 9 else {}, {}, "s", 0, "0.1.0")
    return PromptVersion(
        task,
        number,
        "e" * 64,
        {"answer": "colour", "candidates": ["red", "blue"], **config},
        {},
        {},
        lineage,
        datetime(2026, 1, 1, tzinfo=UTC),
    )


Answers = dict[str, list[str | None]]


@pytest.fixture
def judged(tmp_path: Path) -> Callable[..., Evaluation]:
    """An evaluation of outputs as runs leave them: by version the answer of each row, None where it
    is an error; `expected` by row, None where it is not known."""

    def run_all(
        versions: list[PromptVersion],
        answers: Answers,
        expected: list[str | None],
        is_by_task: bool = False,
    ) -> Evaluation:
        def run(source: str, settings: BatchSettings) -> Finished:
            ref = str(settings.prompt)
            lines = []
            for row, (answer, right) in enumerate(zip(answers[ref], expected, strict=True), 1):
                value: dict[str, Any] = {"row": row, "task": ref.partition("@")[0], "version": 1}
                if answer is None:
                    value["error"] = f"{ref}: row {row} is too long"
                else:
                    value |= {"answer": answer, "score": 0.5}
                    value |= {} if right is None else {"expected": right}
                lines.append(json.dumps(value) + "\n")
            path = tmp_path / f"{ref}.jsonl"
            path.write_text("".join(lines))
            return Finished(f"run-{ref}", (OutputFile(str(path)),), 1.0)

        rows = OwnRows("rows.jsonl", (DATA,), is_by_task)
        return evaluate(versions, "rows.jsonl", BatchSettings(), rows, run)

    return run_all


def test_one_version_has_its_figures_and_no_verdict(judged: Callable[..., Evaluation]) -> None:
    found = judged([version(1)], {"colour@1": ["red", "red", "blue"]}, ["red", "blue", "blue"])
    (only,) = found.versions
    assert (only.ref, only.metric, only.run) == ("colour@1", "accuracy", "run-colour@1")
    assert only.hits == Share(2, 3)
    assert (found.comparisons, found.notes, found.data_digest) == ((), (), DATA)


def test_versions_are_held_against_the_first(judged: Callable[..., Evaluation]) -> None:
    expected = ["red"] * 12
    answers: Answers = {
        "colour@1": ["blue"] * 10 + ["red"] * 2,
        "colour@2": ["red"] * 12,
        "colour@3": ["blue"] * 12,
    }
    found = judged([version(n) for n in (1, 2, 3)], answers, expected)
    first, second = found.comparisons
    assert (first.a, first.b, first.hits) == ("colour@1", "colour@2", PairedHits(2, 0, 10, 0))
    assert first.verdict.startswith("colour@2 is better: +83.3 points")
    assert second.hits == PairedHits(0, 2, 0, 10)
    assert "no difference can be told on 12 rows" in second.verdict
    assert any(note.startswith("2 comparisons: p values are of each alone") for note in found.notes)


def test_an_error_is_wrong_where_the_other_knows_the_answer(
    judged: Callable[..., Evaluation],
) -> None:
    answers: Answers = {"colour@1": ["red", None, None], "colour@2": ["red", "red", None]}
    found = judged([version(1), version(2)], answers, ["red", "red", "red"])
    assert [each.hits for each in found.versions] == [Share(1, 2), Share(2, 2)]
    assert found.comparisons[0].hits == PairedHits(1, 0, 1, 0)
    assert found.notes == (
        (
            "colour@1 gave 2 of 3 rows an error and no answer, row 2 the first: "
            "colour@1: row 2 is too long"
        ),
        "colour@1: 1 of 3 rows do not say what is right (the field 'colour')",
        (
            "colour@2 gave 1 of 3 rows an error and no answer, row 3 the first: "
            "colour@2: row 3 is too long"
        ),
        "colour@2: 1 of 3 rows do not say what is right (the field 'colour')",
    )


def test_without_a_known_answer_nothing_is_judged(judged: Callable[..., Evaluation]) -> None:
    answers: Answers = {"colour@1": ["red"], "colour@2": ["red"]}
    found = judged([version(1), version(2)], answers, [None])
    assert [each.hits for each in found.versions] == [None, None]
    assert found.comparisons == ()


def test_data_that_chose_a_version_are_told(judged: Callable[..., Evaluation]) -> None:
    found = judged([version(9)], {"colour@9": ["red"]}, ["red"])
    assert found.notes == ("colour@9 was chosen by these very rows: its figure flatters it",)


def test_versions_of_two_tasks_are_compared_within_each(judged: Callable[..., Evaluation]) -> None:
    refs = ("colour@1", "word@1", "colour@2", "word@2")
    versions = [version(int(ref[-1]), ref[:-2], answer=ref[:-2]) for ref in refs]
    found = judged(versions, {ref: ["red"] for ref in refs}, ["red"], is_by_task=True)
    assert [each.ref for each in found.versions] == list(refs)
    assert [(c.a, c.b) for c in found.comparisons] == [refs[::2], refs[1::2]]


def test_what_nothing_can_judge_is_refused_before_a_run(judged: Callable[..., Evaluation]) -> None:
    with pytest.raises(InvalidInput, match="neither right nor wrong"):
        check_evaluation([version(1)], BatchSettings(mode=BatchMode.EMBED))
    with pytest.raises(InvalidInput, match="colour@1 is named twice"):
        judged([version(1), version(1)], {}, [])
    with pytest.raises(InvalidInput, match="predicts the field 'colour', colour@2 predicts 'word'"):
        judged([version(1), version(2, answer="word")], {}, [])


def test_outputs_of_other_rows_are_refused() -> None:
    two = [Contender(version(1)), Contender(version(2))]
    one, other = [AnswerRow(1), AnswerRow(2)], [AnswerRow(1)]
    with pytest.raises(IntegrityError, match="not of the same rows"):
        count_together(two, [one, other])
    with pytest.raises(IntegrityError, match="not of the same rows"):
        count_together(two, [[AnswerRow(1)], [AnswerRow(2)]])


@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), min_size=1))
def test_pairs_are_those_of_the_plain_count(hits: list[tuple[bool, bool, bool]]) -> None:
    outputs = [
        [
            AnswerRow(row, "t", 1, "a" if right[place] else "b", expected="a")
            for row, right in enumerate(hits, start=1)
        ]
        for place in range(3)
    ]
    _, joint = count_together([Contender(version(n)) for n in (1, 2, 3)], outputs)
    for a, b in ((0, 1), (0, 2), (1, 2)):
        expected = PairedHits.count([h[a] for h in hits], [h[b] for h in hits])
        assert paired(joint, a, b) == expected
