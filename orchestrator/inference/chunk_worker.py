"""What a Ray Data actor does with a chunk: parse, encode, answer, and write output lines.

Rows of all prompts on one base go through the model together. A row's error stays in its line.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.artifacts.artifact_store import ArtifactStore
from orchestrator.domain.errors import InvalidInput
from orchestrator.domain.prompt_version import PromptVersion
from orchestrator.inference.chunk import Chunk, read_lines
from orchestrator.inference.request import Request, parse_request

if TYPE_CHECKING:
    from orchestrator.inference.predictor import Predictor


@dataclass(frozen=True)
class ServedBase:
    """Where a base lies and the longest row it takes."""

    folder: Path
    max_length: int


@dataclass(frozen=True)
class BatchPlan:
    """Everything resolved before a run: versions by reference, why others are not, the bases."""

    input: Path
    artifact_url: str
    default_alias: str
    versions: Mapping[str, PromptVersion]
    unresolved: Mapping[str, str]
    bases: Mapping[str, ServedBase]
    num_threads: int


@dataclass
class _Line:
    """A line on its way from request to output."""

    request: Request | None = None
    version: PromptVersion | None = None
    answer: str | None = None
    score: float | None = None
    error: str | None = None

    def output(self, number: int) -> str:
        value: dict[str, Any] = {"line": number}
        if self.request is not None:
            if self.request.id is not None:
                value["id"] = self.request.id
            value["task"] = self.request.ref.task
        if self.version is not None:
            value |= {"version": self.version.number, "digest": self.version.digest}
        if self.error is not None:
            value["error"] = self.error
        else:
            value |= {"answer": self.answer, "score": round(self.score or 0.0, 6)}
        return json.dumps(value, ensure_ascii=False)


@dataclass
class ChunkWorker:
    """Answers chunks; loads each base once, and each prompt once."""

    plan: BatchPlan
    _predictors: dict[str, "Predictor"] = field(default_factory=dict)

    def answer(self, chunk: Chunk) -> tuple[list[str], int]:
        """The chunk's output lines, in order, and how many of them are errors."""
        lines = [
            self._parse(line, chunk.first + offset)
            for offset, line in enumerate(read_lines(self.plan.input, chunk))
        ]
        by_base: dict[str, list[_Line]] = {}
        for line in lines:
            if line.version is not None and line.error is None:
                by_base.setdefault(line.version.lineage.base_fingerprint, []).append(line)
        for fingerprint, group in by_base.items():
            self._answer_on_base(fingerprint, group)
        outputs = [line.output(chunk.first + offset) for offset, line in enumerate(lines)]
        return outputs, sum(line.error is not None for line in lines)

    def _parse(self, text: bytes, number: int) -> _Line:
        try:
            request = parse_request(text, number, self.plan.default_alias)
        except InvalidInput as error:
            return _Line(error=error.message)
        version = self.plan.versions.get(str(request.ref))
        if version is None:
            return _Line(request, error=self.plan.unresolved[str(request.ref)])
        return _Line(request, version)

    def _answer_on_base(self, fingerprint: str, lines: list[_Line]) -> None:
        from orchestrator.inference.predictor import Query

        predictor = self._predictor(fingerprint)
        ready: list[tuple[_Line, Query]] = []
        for line in lines:
            assert line.request is not None
            assert line.version is not None
            try:
                context = predictor.prompts[line.version.ref].encode(line.request.fields)
            except InvalidInput as error:
                line.error = error.message
            else:
                ready.append((line, Query(line.version.ref, context)))
        answers = predictor.answer([query for _, query in ready])
        for (line, _), answer in zip(ready, answers, strict=True):
            line.answer, line.score = answer.text, answer.score

    def _predictor(self, fingerprint: str) -> "Predictor":
        """Of the prompts on a base; loaded once."""
        if fingerprint not in self._predictors:
            self._predictors[fingerprint] = self._load(fingerprint)
        return self._predictors[fingerprint]

    def _load(self, fingerprint: str) -> "Predictor":
        import torch

        from orchestrator.inference.predictor import Predictor

        torch.set_num_threads(self.plan.num_threads)
        base = self.plan.bases[fingerprint]
        versions = {version.ref: version for version in self.plan.versions.values()}.values()
        here = [each for each in versions if each.lineage.base_fingerprint == fingerprint]
        store = ArtifactStore(self.plan.artifact_url)
        return Predictor.load(base.folder, base.max_length, here, store)
