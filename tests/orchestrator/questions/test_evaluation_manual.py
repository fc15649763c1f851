"""Versions held against the manual prompt of their spec, whose answers are the plain model's on the
rows that training scores."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from encoders.text.tokenization import TextTokenizer
from orchestrator.batch_report.part_reader import read_rows
from orchestrator.batch_reporting import output_files
from orchestrator.domain.batch import BatchMode, BatchSettings
from orchestrator.domain.dataset import read_dataset
from orchestrator.domain.errors import InvalidInput
from orchestrator.domain.prompt_version import PromptVersion
from orchestrator.sdk import Tutti
from orchestrator.training.task_data import Example, encode_task
from tests.orchestrator.questions.conftest import Register
from tests.orchestrator.questions.test_evaluation_runs import Here
from tests.tiny import colour_rows, write_rows, write_task

MANUAL = "What is the colour of {word}? {colour}"
NUM_ROWS = 20
Made = Callable[..., PromptVersion]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows.jsonl", colour_rows(NUM_ROWS))


@pytest.fixture
def made(tutti: Tutti, register: Register, tmp_path: Path) -> Made:
    """A version of a job whose spec has a manual prompt."""

    def make(seed: int = 0, manual: str | None = MANUAL, **changes: Any) -> PromptVersion:
        evaluation = {"every": 2} | ({"manual_prompt": manual} if manual else {})
        spec = write_task(tmp_path, "colour", evaluation=evaluation)
        job = tutti.submit([spec], force=True)[0].job
        return register(seed, job=job.id, **changes)

    return make


def said(tutti: Tutti, run_id: str) -> list[str | None]:
    """What a run answered, row by row."""
    run = tutti.batch_run(run_id)
    return [row.said for row in read_rows(output_files(run, tutti.parts.batches.shards(run_id)))]


def examples(tutti: Tutti, version: PromptVersion, rows: Path) -> tuple[Example, ...]:
    """The manual prompt's rows as training encodes them."""
    spec = tutti.parts.jobs.get(str(version.lineage.job)).submission.spec
    tokenizer = TextTokenizer.load(tutti.parts.base_store.path(version.lineage.base_fingerprint))
    dataset = read_dataset(rows, ["word", "colour"])
    data = encode_task(spec, {"train": dataset, "eval": dataset}, tokenizer, 256)
    assert data.candidates == ("blue", "red")
    return data.manual


@torch.no_grad()
def likelier(tutti: Tutti, version: PromptVersion, rows: Path) -> list[str]:
    """The candidate that a plain transformers model finds likelier after each row's text."""
    from transformers import AutoModelForCausalLM

    folder = tutti.parts.base_store.path(version.lineage.base_fingerprint)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), TextTokenizer.load(folder)
    found = []
    for example in examples(tutti, version, rows):
        scores = {}
        for colour in ("red", "blue"):
            answer = tokenizer.encode(f" {colour}")
            ids = torch.tensor([[*example.context, *answer]])
            log_probs = model(ids).logits[0, len(example.context) - 1 : -1].log_softmax(-1)
            picked = log_probs[torch.arange(len(answer)), torch.tensor(answer)]
            scores[colour] = float(picked.sum())
        found.append(max(scores, key=scores.__getitem__))
    return found


def test_manual_prompt_answers_as_the_plain_model_does(
    tutti: Tutti, made: Made, rows: Path
) -> None:
    version = made()
    found = tutti.evaluate(["colour@1"], rows, against="manual", pool=Here())
    manual, own = found.versions
    assert (manual.ref, own.ref) == ("colour (manual)", "colour@1")
    expected = likelier(tutti, version, rows)
    assert said(tutti, manual.run) == expected
    right = [row["colour"] for row in colour_rows(NUM_ROWS)]
    assert manual.hits is not None
    assert manual.hits.num_hits == sum(a == b for a, b in zip(expected, right, strict=True))
    assert own.hits == tutti.evaluate(["colour@1"], rows, pool=Here()).versions[0].hits
    (comparison,) = found.comparisons
    assert (comparison.a, comparison.b) == ("colour (manual)", "colour@1")
    assert (comparison.hits.a, comparison.hits.b) == (manual.hits, own.hits)


def test_its_rows_name_no_version_and_the_report_says_what_answered(
    tutti: Tutti, made: Made, rows: Path
) -> None:
    made()
    manual = tutti.evaluate(["colour"], rows, against="manual", pool=Here()).versions[0]
    report = tutti.batch_report(manual.run)
    assert [each.name for each in report.versions] == ["colour (no version)"]
    assert report.versions[0].hits == manual.hits
    assert report.facts.settings["manual_prompt"] == MANUAL
    lines = Path(tutti.batch_run(manual.run).output, "part-00000.jsonl").read_text().splitlines()
    assert not {"version", "digest"} & json.loads(lines[0]).keys()


def test_all_versions_are_held_against_it(tutti: Tutti, made: Made, rows: Path) -> None:
    made(0)
    made(1)
    found = tutti.evaluate(["colour@2", "colour@1"], rows, against="manual", pool=Here())
    assert [each.ref for each in found.versions] == ["colour (manual)", "colour@2", "colour@1"]
    assert [(c.a, c.b) for c in found.comparisons] == [
        ("colour (manual)", "colour@2"),
        ("colour (manual)", "colour@1"),
    ]


def test_what_it_generates_is_judged_too(tutti: Tutti, made: Made, rows: Path) -> None:
    made(candidates=None, ends_answer=True)
    mode = BatchMode.GENERATE
    manual = tutti.evaluate(["colour"], rows, mode=mode, against="manual", pool=Here()).versions[0]
    assert (manual.metric, manual.report.num_errors) == ("exact_match", 0)
    assert all(text is not None for text in said(tutti, manual.run))


def test_field_that_gives_way_may_be_missing_from_it(tutti: Tutti, made: Made, rows: Path) -> None:
    made(manual="Red or blue? {colour}", truncate="word", max_length=64)
    manual = tutti.evaluate(["colour"], rows, against="manual", pool=Here()).versions[0]
    assert manual.report.num_errors == 0
    assert len(set(said(tutti, manual.run))) == 1


def test_versions_without_one_or_with_others_are_refused(
    tutti: Tutti, made: Made, register: Register, rows: Path
) -> None:
    made(0)
    made(1, manual="{word}: {colour}")
    made(2, manual=None)
    register(3)
    for refs, why in {
        ("colour@1", "colour@2"): "colour@1 and colour@2 have different manual prompts",
        ("colour@3",): "colour@3 has no manual prompt",
        ("colour@4",): "no job of this registry",
    }.items():
        with pytest.raises(InvalidInput, match=why):
            tutti.evaluate(refs, rows, against="manual", pool=Here())
    assert tutti.batches() == []


def test_a_run_keeps_the_manual_prompt_and_an_older_one_has_none() -> None:
    settings = BatchSettings(manual_prompt=MANUAL)
    kept = settings.to_json()
    assert BatchSettings.from_json(kept) == settings
    del kept["manual_prompt"]
    assert BatchSettings.from_json(kept) == BatchSettings()
