"""Two versions answer the same rows; figures and verdict follow from the hits alone."""

from pathlib import Path

import pytest

from orchestrator.domain.digest import digest_file
from orchestrator.domain.errors import InvalidData, InvalidInput
from orchestrator.domain.paired_hits import PairedHits
from orchestrator.inference.predictor import Predictor, Query
from orchestrator.questions.prompt_compare import Comparison
from orchestrator.sdk import Tutti
from tests.orchestrator.questions.conftest import Register
from tests.tiny import colour_rows, write_rows


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows.jsonl", colour_rows(30))


def hits(tutti: Tutti, ref: str) -> list[bool]:
    """The plain loop: one version, one row at a time."""
    version = tutti.prompt(ref)
    folder = tutti.base_folder(version.lineage.base_fingerprint)
    predictor = Predictor.load(folder, 256, [version], tutti.parts.artifacts)
    answers = [
        predictor.answer([Query(ref, predictor.prompts[ref].encode(row))])[0].text
        for row in colour_rows(30)
    ]
    return [text == row["colour"] for text, row in zip(answers, colour_rows(30), strict=True)]


def test_both_versions_answer_every_row(tutti: Tutti, register: Register, rows: Path) -> None:
    register(0)
    register(5, template="{prompt:4}{word} {colour}")
    found = tutti.compare("colour@1", "colour@2", rows)
    assert found.hits == PairedHits.count(hits(tutti, "colour@1"), hits(tutti, "colour@2"))
    assert found.metrics == ("accuracy", "accuracy")
    assert (found.a, found.b, found.notes) == ("colour@1", "colour@2", ())
    assert found.data_digest == digest_file(rows)


def test_versions_on_two_bases_are_compared(
    tutti: Tutti, register: Register, rows: Path, other_base: Path
) -> None:
    register(0)
    tutti.add_base("tiny", other_base, replace=True)
    register(0)
    found = tutti.compare("colour@1", "colour@2", rows)
    assert found.hits == PairedHits.count(hits(tutti, "colour@1"), hits(tutti, "colour@2"))


def test_a_generated_answer_is_judged_as_a_whole(
    tutti: Tutti, register: Register, rows: Path
) -> None:
    register(0)
    register(1, candidates=None, ends_answer=True, metric="exact_match")
    found = tutti.compare("colour@1", "colour@2", rows)
    assert found.metrics == ("accuracy", "exact_match")
    assert found.hits.b.num_hits == 0  # a random base says no colour


def test_what_flatters_a_version_is_said(tutti: Tutti, register: Register, rows: Path) -> None:
    register(0, lineage={"datasets": {"train": digest_file(rows)}})
    register(1, candidates=["red", "green"])
    notes = tutti.compare("colour@1", "colour@2", rows).notes
    assert notes == (
        "colour@1 was trained on these very rows: its figure flatters it",
        "colour@2 has no candidate for the answers of 15 rows",
    )


def test_versions_that_no_row_can_tell_apart_are_refused(
    tutti: Tutti, register: Register, rows: Path
) -> None:
    register(0)
    register(0, task="word", template="{colour}:{prompt:4} {word}", answer="word")
    with pytest.raises(InvalidInput, match="predicts the field 'colour', word@1 predicts 'word'"):
        tutti.compare("colour@1", "word@1", rows)
    with pytest.raises(InvalidInput, match="both are colour@1"):
        tutti.compare("colour@1", "colour", rows)


def test_a_row_that_cannot_be_taken_is_named(
    tutti: Tutti, register: Register, tmp_path: Path
) -> None:
    register(0)
    register(1)
    long = write_rows(tmp_path / "long.jsonl", [*colour_rows(1), {"word": "x" * 400, "colour": ""}])
    with pytest.raises(InvalidData, match=r"long\.jsonl:2: colour@1: "):
        tutti.compare("colour@1", "colour@2", long)
    without = write_rows(tmp_path / "without.jsonl", [{"word": "a"}])
    with pytest.raises(InvalidData, match=r"without\.jsonl:1: the row lacks the field 'colour'"):
        tutti.compare("colour@1", "colour@2", without)
    with pytest.raises(InvalidData, match="no such file"):
        tutti.compare("colour@1", "colour@2", tmp_path / "nowhere")


def verdict(both: int, only_a: int, only_b: int, neither: int) -> str:
    hits = PairedHits(both, only_a, only_b, neither)
    return Comparison("t@1", "t@2", "rows", "d", ("accuracy", "accuracy"), hits).verdict


def test_the_verdict_names_the_better_one_only_if_it_can_be_told() -> None:
    assert verdict(36, 2, 12, 0).startswith("t@2 is better: +20.0 points from t@1 to t@2 (95%")
    assert "interval +5.7 to +34.0, p = 0.013)" in verdict(36, 2, 12, 0)
    assert verdict(36, 12, 2, 0).startswith("t@1 is better: -20.0 points")
    assert verdict(40, 2, 4, 4) == (
        "no difference can be told on 50 rows: the versions part on 6 of them (p = 0.69, "
        "not below 0.05)"
    )
