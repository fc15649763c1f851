"""Answers rows of many prompts on one base: ranks candidates, or decodes greedily.

Rows of all prompts share forward passes; a prompt's virtual tokens are computed once a pass.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from encoders.packed.packed_model import PackedModel
from encoders.packed.packing import PackedBatch, PackedRow, pack
from encoders.packed.padded_model import load_exact
from encoders.packed.pass_budget import split_by_budget
from encoders.packed.scoring import rank_answers
from encoders.text.tokenization import TextTokenizer
from orchestrator.artifacts.artifact_store import ArtifactStore
from orchestrator.domain.prompt_version import PromptVersion
from orchestrator.inference.served_prompt import ServedPrompt

MAX_POSITIONS = 2048  # of one forward pass


@dataclass(frozen=True)
class Answer:
    """`score` is a probability: among the candidates, or of the generated text."""

    text: str
    score: float


@dataclass(frozen=True)
class Query:
    """A row to answer: its prompt's key, and its encoded context."""

    prompt: str
    context: tuple[int, ...]


class Predictor:
    """Answers queries with `prompts`, by key, on a base; deterministic."""

    def __init__(
        self, model: PackedModel, tokenizer: TextTokenizer, prompts: Mapping[str, ServedPrompt]
    ) -> None:
        self._model, self._tokenizer, self.prompts = model, tokenizer, prompts
        self._virtual = {key: prompt.virtual_tokens for key, prompt in prompts.items()}
        self._lengths = {key: tokens.shape[0] for key, tokens in self._virtual.items()}

    @classmethod
    def load(
        cls,
        base: Path,
        max_length: int,
        versions: Iterable[PromptVersion],
        store: ArtifactStore,
    ) -> "Predictor":
        """Load a base's folder, whose longest row is `max_length`, and `versions` on it, which
        become its prompts by `TASK@NUMBER`."""
        tokenizer = TextTokenizer.load(base)
        prompts = {
            version.ref: ServedPrompt.load(version, store, tokenizer, max_length)
            for version in versions
        }
        return cls(load_exact(base), tokenizer, prompts)

    @torch.no_grad()
    def answer(self, queries: Sequence[Query]) -> list[Answer]:
        """One answer a query, in order."""
        answers: dict[int, Answer] = {}
        ranked = [i for i, q in enumerate(queries) if self.prompts[q.prompt].candidates]
        generated = [i for i, q in enumerate(queries) if not self.prompts[q.prompt].candidates]
        for indices, answer in (
            (ranked, self._rank([queries[i] for i in ranked])),
            (generated, self._generate([queries[i] for i in generated])),
        ):
            answers.update(zip(indices, answer, strict=True))
        return [answers[index] for index in range(len(queries))]

    def _rank(self, queries: Sequence[Query]) -> list[Answer]:
        rows = [
            PackedRow(q.prompt, q.context, self.prompts[q.prompt].candidate_ids) for q in queries
        ]
        answers: dict[int, Answer] = {}
        for indices, logits, batch in self._forward(rows):
            for index, ranks in zip(indices, rank_answers(logits, batch), strict=True):
                best = int(ranks.argmax())
                text = self.prompts[queries[index].prompt].candidates[best]
                answers[index] = Answer(text, float(ranks[best]))
        return [answers[index] for index in range(len(queries))]

    def _generate(self, queries: Sequence[Query]) -> list[Answer]:
        """Decode all rows side by side; a row leaves at its end token or its longest answer."""
        end = self._tokenizer.eos_token_id
        said: list[list[int]] = [[] for _ in queries]
        scores = [0.0] * len(queries)
        active = list(range(len(queries)))
        while active:
            rows = [
                PackedRow(queries[i].prompt, queries[i].context + tuple(said[i])) for i in active
            ]
            for places, logits, _ in self._forward(rows):
                log_probs = logits[: len(places)].float().log_softmax(-1)
                for place, row in zip(places, log_probs, strict=True):
                    token = int(row.argmax())
                    said[active[place]].append(token)
                    scores[active[place]] += float(row[token])
            active = [
                i
                for i in active
                if said[i][-1] != end
                and len(said[i]) < self.prompts[queries[i].prompt].max_answer_tokens
            ]
        texts = [self._tokenizer.decode([t for t in ids if t != end]).strip() for ids in said]
        return [
            Answer(text, float(torch.tensor(score).exp()))
            for text, score in zip(texts, scores, strict=True)
        ]

    def _forward(
        self, rows: Sequence[PackedRow]
    ) -> Iterator[tuple[list[int], Tensor, PackedBatch]]:
        """Logits of packs of rows, rows of one prompt side by side, like lengths together."""
        order = sorted(range(len(rows)), key=lambda i: (rows[i].prompt, len(rows[i].context)))
        first = 0
        for pack_rows in split_by_budget([rows[i] for i in order], MAX_POSITIONS):
            batch = pack(pack_rows, self._lengths)
            indices = order[first : first + len(pack_rows)]
            yield indices, self._model.logits(batch, self._virtual), batch
            first += len(pack_rows)
