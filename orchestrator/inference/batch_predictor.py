"""Answers in a `ray.data` pipeline of your own: a class for `Dataset.map_batches`.

    with Tutti() as tutti:
        arguments = tutti.batch_predictor(["country-continent@production"])
    rows = ray.data.from_items([{"country": "Kenya"}, {"country": "Peru"}])
    answered = rows.map_batches(
        BatchPredictor, fn_constructor_kwargs=arguments, batch_size=256, concurrency=2
    )

A batch's columns are fields, or those that `settings.columns` maps, with `task` and `version` where
it is not one prompt that answers all (the only one given does). A column `row` of whole numbers
seeds samples. Back come the batch's own columns and version, answer, score, scores (JSON text: a
column has one type), tokens, embedding, error. References are resolved where `batch_predictor` is
called, and stay what they were. Workers need the base's folder and the artifact store, and see no
registry.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.batch_data.batch_row import BatchRow, Record, batch_row
from orchestrator.batch_data.output_row import OutputRow
from orchestrator.domain.batch import BatchMode, BatchSettings
from orchestrator.domain.errors import InvalidInput
from orchestrator.domain.prompt_version import PromptRef, PromptVersion
from orchestrator.inference.row_answers import AnswerPlan, RowAnswers, ServedBase

Columns = dict[str, NDArray[Any]]
SEED_COLUMN = "row"


def predictor_arguments(
    versions: Mapping[str, PromptVersion],
    bases: Mapping[str, tuple[Path, int]],
    artifact_url: str,
    num_threads: int,
    settings: BatchSettings | None = None,
    weight_copies_bytes: int = 0,
) -> dict[str, Any]:
    """BatchPredictor's arguments: `versions` by reference, `bases` as folder and longest row by
    fingerprint. One reference alone answers all rows."""
    settings = settings or BatchSettings()
    if settings.prompt is None and len(versions) == 1:
        (only,) = versions
        settings = BatchSettings(**{**vars(settings), "prompt": PromptRef.parse(only)})
    served = {fingerprint: ServedBase(*base) for fingerprint, base in bases.items()}
    plan = AnswerPlan(
        settings, versions, {}, served, artifact_url, num_threads, weight_copies_bytes
    )
    return {"plan": plan}


class BatchPredictor:
    """Columns in, columns out; a row that cannot be answered has an `error`."""

    def __init__(self, plan: AnswerPlan) -> None:
        self._plan, self._answers = plan, RowAnswers(plan)

    def __call__(self, batch: Columns) -> Columns:
        settings = self._plan.settings
        if settings.decoding.do_sample and SEED_COLUMN not in batch:
            raise InvalidInput(
                "rows are to be sampled, and there is no column 'row' to seed them by",
                "Add one with a whole number for each row.",
            )
        rows = [self._row(values, n) for n, values in enumerate(_rows(batch), start=1)]
        outputs = [row.output for row in self._answers.answer(rows)]
        answered = {"version", "answer", "score", "scores", "tokens", "error"}
        if settings.mode is BatchMode.EMBED:
            answered = {"version", "embedding", "error"}
        return {**batch, **{name: _column(outputs, name) for name in sorted(answered)}}

    def _row(self, values: dict[str, Any], number: int) -> BatchRow:
        seed = values.pop(SEED_COLUMN, number)
        row = batch_row(Record(number, values), int(seed), None, "row", self._plan.settings)
        if row.error is None and str(row.ref) not in self._plan.versions:
            return BatchRow(row.row, row.line, error=f"{row.ref} is not among the prompts given")
        return row


def _rows(batch: Columns) -> list[dict[str, Any]]:
    """A batch's rows, their values as Python's own."""
    columns = {name: values.tolist() for name, values in batch.items()}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _column(rows: list[OutputRow], name: str) -> NDArray[Any]:
    values = np.empty(len(rows), dtype=object)
    for index, row in enumerate(rows):
        value = row.to_json().get(name)
        values[index] = json.dumps(value) if name == "scores" and value is not None else value
    return values
