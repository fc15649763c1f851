"""Answers rows of many prompts on one base: ranks candidates, scores answers, generates, embeds.

Rows of all prompts share forward passes. What a prompt's rows open with enters as held keys and
values where the plan says so (`prompt_states.py`), else once a pack. The same call gives the same
answers to the bit, in a fresh process as well; a row's answer depends on which rows share its
call by no more than rounding.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch

from encoders.packed.packed_model import PackedModel
from encoders.packed.padded_model import load_exact
from encoders.text.tokenization import TextTokenizer
from orchestrator.artifacts.artifact_store import ArtifactStore
from orchestrator.domain.batch import BatchMode, Decoding
from orchestrator.domain.prompt_version import PromptVersion
from orchestrator.inference.embedding import embed
from orchestrator.inference.generation import GenerationRow, generate
from orchestrator.inference.passes import MAX_POSITIONS, Passes
from orchestrator.inference.prompt_states import HELD_BYTES, PromptStates
from orchestrator.inference.query import Answer, Query
from orchestrator.inference.ranking import Ranking
from orchestrator.inference.served_prompt import ServedPrompt

__all__ = ["Answer", "Predictor", "Query"]

GREEDY = Decoding()

LoadBase = Callable[[Path], PackedModel]


class Predictor:
    """Answers queries with `prompts`, by key, on a base; deterministic.

    `held_bytes` bounds the prompts' keys and values that are held (0: none); `max_positions` is the
    size of a forward pass.
    """

    def __init__(
        self,
        model: PackedModel,
        tokenizer: TextTokenizer,
        prompts: Mapping[str, ServedPrompt],
        held_bytes: int = HELD_BYTES,
        max_positions: int = MAX_POSITIONS,
    ) -> None:
        self._model, self._tokenizer, self.prompts = model, tokenizer, prompts
        self._virtual = {key: prompt.virtual_tokens for key, prompt in prompts.items()}
        openings = {key: prompt.opening for key, prompt in prompts.items()}
        self._states = PromptStates(model, self._virtual, openings, held_bytes)
        self._passes = Passes(model, self._virtual, self._states, max_positions)
        self._ranking = Ranking(self._passes, prompts)

    @classmethod
    def load(
        cls,
        base: Path,
        max_length: int,
        versions: Iterable[PromptVersion],
        store: ArtifactStore,
        held_bytes: int = HELD_BYTES,
        weight_copies_bytes: int = 0,
        load_base: LoadBase = load_exact,
        manual_prompt: str | None = None,
    ) -> "Predictor":
        """Load a base's folder, whose longest row is `max_length`, and `versions` on it, which
        become its prompts by `TASK@NUMBER`, or `manual_prompt` in their place;
        `weight_copies_bytes` as `keep_weight_copies` takes it."""
        tokenizer = TextTokenizer.load(base)

        def serve(version: PromptVersion) -> ServedPrompt:
            if manual_prompt is not None:
                return ServedPrompt.manual(version, manual_prompt, tokenizer, max_length)
            return ServedPrompt.load(version, store, tokenizer, max_length)

        prompts = {version.ref: serve(version) for version in versions}
        model = load_base(base)
        model.keep_weight_copies(weight_copies_bytes)
        return cls(model, tokenizer, prompts, held_bytes)

    @property
    def plan_note(self) -> str:
        """How the prompts of the last call entered its passes, and why, in a line."""
        return self._states.note

    @torch.no_grad()
    def answer(
        self,
        queries: Sequence[Query],
        mode: BatchMode = BatchMode.AUTO,
        calibrate: bool = False,
        decoding: Decoding = GREEDY,
    ) -> list[Answer]:
        """One answer a query, in order. `calibrate` is for what is classified (`ranking.py`),
        `decoding` for what is generated. InvalidInput: a mode that a query's prompt does not have;
        InvalidData: an answer to score that has no tokens or is too long."""
        by_mode: dict[BatchMode, list[int]] = {}
        for index, query in enumerate(queries):
            by_mode.setdefault(self._mode(query, mode), []).append(index)
        answers: dict[int, Answer] = {}
        for each, indices in by_mode.items():
            asked = [queries[index] for index in indices]
            answers.update(
                zip(indices, self._answer(asked, each, calibrate, decoding), strict=True)
            )
        return [answers[index] for index in range(len(queries))]

    def _mode(self, query: Query, mode: BatchMode) -> BatchMode:
        if mode is not BatchMode.AUTO:
            return mode
        candidates = self.prompts[query.prompt].candidates
        return BatchMode.CLASSIFY if candidates else BatchMode.GENERATE

    def _answer(
        self, queries: Sequence[Query], mode: BatchMode, calibrate: bool, decoding: Decoding
    ) -> list[Answer]:
        if mode is BatchMode.CLASSIFY:
            return self._ranking.classify(queries, calibrate)
        if mode is BatchMode.SCORE:
            return self._ranking.score(queries)
        if mode is BatchMode.EMBED:
            return embed(self._passes, queries)
        return self._generate(queries, decoding)

    def _generate(self, queries: Sequence[Query], decoding: Decoding) -> list[Answer]:
        rows = [
            GenerationRow(q.prompt, q.context, self.prompts[q.prompt].max_answer_tokens, q.seed)
            for q in queries
        ]
        generated = generate(
            self._model,
            self._tokenizer,
            rows,
            decoding,
            self._virtual,
            passes=self._passes.entries,
        )
        return [Answer(each.text, each.score, num_tokens=each.num_tokens) for each in generated]
