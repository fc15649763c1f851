"""Rows of many prompts and two bases are answered as each alone; what is wrong stays in its row."""

from collections.abc import Callable
from typing import Any

import pytest

from orchestrator.artifacts.artifact_store import ArtifactStore
from orchestrator.batch_data.batch_row import BatchRow
from orchestrator.domain.batch import BatchMode, BatchSettings, Decoding
from orchestrator.domain.prompt_version import PromptRef, PromptVersion
from orchestrator.inference.row_answers import AnsweredRow, AnswerPlan, RowAnswers, ServedBase
from tests.orchestrator.inference.conftest import MAX_LENGTH, Base, MakeVersion

Answer = Callable[..., list[AnsweredRow]]


@pytest.fixture(scope="module")
def versions(make_version: MakeVersion, bases: tuple[Base, Base]) -> dict[str, PromptVersion]:
    return {
        "colour@production": make_version("colour"),
        "prefix@production": make_version("prefix", template="{prompt:4}{word} {colour}"),
        "colour@2": make_version("colour", number=2, candidates=("one", "two")),
        "other@production": make_version("other", base=bases[1], candidates=None),
    }


@pytest.fixture
def answer(
    store: ArtifactStore, bases: tuple[Base, Base], versions: dict[str, PromptVersion]
) -> Answer:
    def answer_rows(rows: list[BatchRow], **settings: Any) -> list[AnsweredRow]:
        plan = AnswerPlan(
            settings=BatchSettings(**settings),
            versions=versions,
            unresolved={"nothing@production": "there is no task 'nothing'"},
            bases={base.fingerprint: ServedBase(base.folder, MAX_LENGTH) for base in bases},
            artifact_url=store.url,
            num_threads=1,
        )
        return RowAnswers(plan).answer(rows)

    return answer_rows


def row(number: int, task: str, word: str | None, target: int | str = "production") -> BatchRow:
    fields = {} if word is None else {"word": word, "colour": "blue"}
    return BatchRow(number, number, None, f"id-{number}", PromptRef(task, target), fields)


MIXED = [
    row(1, "colour", "a1"),
    row(2, "other", "b2"),
    row(3, "prefix", "a1"),
    row(4, "colour", "a1", 2),
    row(5, "other", "a1"),
    row(6, "colour", "zz"),
]


def test_each_row_has_its_answer_in_order(
    answer: Answer, versions: dict[str, PromptVersion]
) -> None:
    outputs = [each.output for each in answer(MIXED)]
    assert [each.row for each in outputs] == [1, 2, 3, 4, 5, 6]
    assert [each.id for each in outputs] == [f"id-{n}" for n in range(1, 7)]
    assert [each.version for each in outputs] == [1, 1, 1, 2, 1, 1]
    assert outputs[3].digest == versions["colour@2"].digest
    assert {outputs[0].answer, outputs[5].answer} <= {"red", "blue"}
    assert outputs[3].answer in ("one", "two")
    assert all(0 <= (each.score or 0) <= 1 for each in outputs)
    assert [each.tokens is None for each in outputs] == [True, False, True, True, False, True]
    assert [each.expected for each in outputs] == ["blue"] * 6


def test_mixed_rows_are_answered_as_each_alone(answer: Answer) -> None:
    for given, together in zip(MIXED, answer(MIXED), strict=True):
        (alone,) = answer([given])
        assert alone.output.answer == together.output.answer
        assert alone.output.score == pytest.approx(together.output.score, abs=1e-4)


BAD = [
    (row(2, "nothing", "a"), "there is no task 'nothing'", "nothing"),
    (row(2, "colour", None), "colour@1: the row lacks the field 'word'", "colour@1"),
    (row(2, "colour", "a" * 300), "colour@1: the row has 310", "colour@1"),
    (BatchRow(2, 2, error="line 2: not JSON"), "line 2: not JSON", ""),
]


@pytest.mark.parametrize(("bad", "message", "counted_as"), BAD)
def test_a_bad_row_holds_its_error_and_nothing_else_is_lost(
    answer: Answer, bad: BatchRow, message: str, counted_as: str
) -> None:
    good = row(1, "colour", "a1")
    first, wrong, last = answer([good, bad, good])
    assert message in str(wrong.output.error)
    assert (wrong.output.answer, wrong.output.score) == (None, None)
    assert wrong.counted_as == counted_as
    assert first.output.answer == last.output.answer is not None


def test_a_version_without_candidates_cannot_classify(answer: Answer) -> None:
    outputs = [each.output for each in answer(MIXED, mode=BatchMode.CLASSIFY)]
    assert outputs[1].error == "other@1 has no candidates to classify"
    assert outputs[0].error is None


def test_scores_are_of_the_rows_own_answers_or_of_the_candidates(answer: Answer) -> None:
    own = BatchRow(1, 1, None, None, PromptRef("other", "production"), {"word": "a"}, ("x", "yz"))
    outputs = [each.output for each in answer([own, MIXED[0]], mode=BatchMode.SCORE)]
    assert list(outputs[0].scores or {}) == ["x", "yz"]
    assert list(outputs[1].scores or {}) == ["red", "blue"]
    assert all(score < 0 for each in outputs for score in (each.scores or {}).values())
    assert outputs[0].error is None


def test_hidden_states_are_embedded(answer: Answer) -> None:
    outputs = [each.output for each in answer(MIXED, mode=BatchMode.EMBED)]
    assert [len(each.embedding or ()) for each in outputs] == [64] * 6


def test_what_may_be_generated_must_fit_the_base(answer: Answer) -> None:
    decoding = Decoding(max_new_tokens=MAX_LENGTH - 5)
    outputs = [each.output for each in answer(MIXED[:2], decoding=decoding)]
    assert outputs[0].error is None  # ranked: nothing is generated
    assert "and 251 may be generated; the base takes 256" in str(outputs[1].error)
    short = Decoding(max_new_tokens=2)
    outputs = [each.output for each in answer(MIXED[:2], decoding=short)]
    assert outputs[1].tokens is not None
    assert outputs[1].tokens <= 2


def test_samples_depend_on_the_row_and_not_on_its_neighbours(answer: Answer) -> None:
    decoding = Decoding(do_sample=True, seed=3, temperature=2.0)
    rows = [row(number, "other", "a1") for number in range(1, 9)]
    together = [each.output.answer for each in answer(rows, decoding=decoding)]
    assert len(set(together)) > 1
    (alone,) = answer([rows[6]], decoding=decoding)
    assert alone.output.answer == together[6]
