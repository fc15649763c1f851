"""Rows through the model: rows of all prompts on one base together, each base loaded once.

Knows neither files nor Ray. A row's error stays in its row.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.artifacts.artifact_store import ArtifactStore
from orchestrator.batch_data.batch_row import BatchRow
from orchestrator.batch_data.output_row import OutputRow
from orchestrator.domain.batch import BatchMode, BatchSettings
from orchestrator.domain.errors import InvalidInput
from orchestrator.domain.prompt_version import PromptVersion
from orchestrator.inference.query import Answer, Query

if TYPE_CHECKING:
    from orchestrator.inference.predictor import LoadBase, Predictor


@dataclass(frozen=True)
class ServedBase:
    """Where a base lies and the longest row it takes."""

    folder: Path
    max_length: int


@dataclass(frozen=True)
class AnswerPlan:
    """Everything that was resolved before: versions by reference as rows give it, why others are
    not, bases by fingerprint."""

    settings: BatchSettings
    versions: Mapping[str, PromptVersion]
    unresolved: Mapping[str, str]
    bases: Mapping[str, ServedBase]
    artifact_url: str
    num_threads: int
    weight_copies_bytes: int = 0


@dataclass
class AnsweredRow:
    """A row on its way from input to output. `positions` of it were read and generated."""

    given: BatchRow
    output: OutputRow
    version: PromptVersion | None = None
    positions: int = 0

    def fail(self, message: str) -> None:
        self.output = replace(self.output, error=message)

    @property
    def counted_as(self) -> str:
        """`TASK@NUMBER`; the task alone where no version answers; "" where no task is named."""
        if self.output.version is not None:
            return f"{self.output.task}@{self.output.version}"
        return self.given.ref.task if self.given.ref is not None else ""


@dataclass
class RowAnswers:
    """Answers rows; loads each base once, by `load_base` or else whole, and each prompt once."""

    plan: AnswerPlan
    load_base: "LoadBase | None" = None
    _predictors: dict[str, "Predictor"] = field(default_factory=dict)

    def answer(self, rows: Sequence[BatchRow]) -> list[AnsweredRow]:
        """One a row, in order."""
        begun = [self._begin(row) for row in rows]
        for fingerprint, group in _by_base(begun).items():
            self._answer_on_base(fingerprint, group)
        return begun

    def _begin(self, given: BatchRow) -> AnsweredRow:
        output = OutputRow(row=given.row, file=given.file, line=given.line, id=given.id)
        if given.ref is not None:
            output = replace(output, task=given.ref.task)
        row = AnsweredRow(given, output)
        if given.error is not None or given.ref is None:
            row.fail(given.error or "the row names no prompt")
            return row
        row.version = self.plan.versions.get(str(given.ref))
        if row.version is None:
            row.fail(self.plan.unresolved[str(given.ref)])
            return row
        output = replace(output, expected=given.fields.get(row.version.config["answer"]))
        if self.plan.settings.manual_prompt is None:
            number, digest = row.version.number, row.version.digest
            output = replace(output, version=number, digest=digest)
        row.output = output
        return row

    def _answer_on_base(self, fingerprint: str, rows: list[AnsweredRow]) -> None:
        predictor, settings = self._predictor(fingerprint), self.plan.settings
        ready: list[tuple[AnsweredRow, Query]] = []
        for row in rows:
            try:
                ready.append((row, self._query(predictor, row)))
            except InvalidInput as error:
                row.fail(error.message)
        answers = predictor.answer(
            [query for _, query in ready],
            mode=settings.mode,
            calibrate=settings.calibrate,
            decoding=settings.decoding,
        )
        for (row, _), answer in zip(ready, answers, strict=True):
            row.positions += answer.num_tokens
            _fill(row, answer)

    def _query(self, predictor: "Predictor", row: AnsweredRow) -> Query:
        """What is asked for a row; raises InvalidInput where its version cannot answer it."""
        assert row.version is not None
        mode, prompt = self.plan.settings.mode, predictor.prompts[row.version.ref]
        answers = (row.given.answers or prompt.candidates) if mode is BatchMode.SCORE else ()
        lacks = {BatchMode.CLASSIFY: not prompt.candidates, BatchMode.SCORE: not answers}
        if lacks.get(mode, False):
            raise InvalidInput(f"{row.version.ref} has no candidates to {mode.value}")
        context = prompt.encode(row.given.fields)
        self._check_room(row.version, len(context), bool(prompt.candidates))
        for answer in answers:  # one that cannot be scored is its row's error, not the shard's
            prompt.encode_answer(context, answer)
        row.positions = len(context)
        return Query(row.version.ref, context, answers, row.given.row)

    def _check_room(self, version: PromptVersion, length: int, has_candidates: bool) -> None:
        """What is generated may be longer than the version's own longest; the base has an end."""
        settings = self.plan.settings
        most = settings.decoding.max_new_tokens or 0
        is_auto = settings.mode is BatchMode.AUTO and not has_candidates
        limit = self.plan.bases[version.lineage.base_fingerprint].max_length
        if (is_auto or settings.mode is BatchMode.GENERATE) and length + most > limit:
            raise InvalidInput(
                f"{version.ref}: the row has {length} tokens and {most} may be generated; the base "
                f"takes {limit}"
            )

    def _predictor(self, fingerprint: str) -> "Predictor":
        """Of the prompts on a base; loaded once."""
        if fingerprint not in self._predictors:
            self._predictors[fingerprint] = self._load(fingerprint)
        return self._predictors[fingerprint]

    def _load(self, fingerprint: str) -> "Predictor":
        import torch

        from encoders.packed.padded_model import load_exact
        from orchestrator.inference.predictor import Predictor

        torch.set_num_threads(self.plan.num_threads)
        base = self.plan.bases[fingerprint]
        versions = {version.ref: version for version in self.plan.versions.values()}
        here = [v for v in versions.values() if v.lineage.base_fingerprint == fingerprint]
        store = ArtifactStore(self.plan.artifact_url)
        return Predictor.load(
            base.folder,
            base.max_length,
            here,
            store,
            weight_copies_bytes=self.plan.weight_copies_bytes,
            load_base=self.load_base or load_exact,
            manual_prompt=self.plan.settings.manual_prompt,
        )


def _by_base(rows: list[AnsweredRow]) -> dict[str, list[AnsweredRow]]:
    groups: dict[str, list[AnsweredRow]] = {}
    for row in rows:
        if row.version is not None and row.output.error is None:
            groups.setdefault(row.version.lineage.base_fingerprint, []).append(row)
    return groups


def _fill(row: AnsweredRow, answer: Answer) -> None:
    """A row's answer; one that is no number is the row's error, for no file can hold it."""
    if not all(math.isfinite(number) for number in _numbers(answer)):
        row.fail("the model's answer to this row is not a finite number")
        return
    is_generated = answer.text is not None and answer.scores is None
    row.output = replace(
        row.output,
        answer=answer.text,
        score=answer.score,
        scores=answer.scores,
        tokens=answer.num_tokens if is_generated else None,
        embedding=answer.embedding,
    )


def _numbers(answer: Answer) -> Iterator[float]:
    if answer.score is not None:
        yield answer.score
    yield from (answer.scores or {}).values()
    yield from answer.embedding or ()
