"""CLASSIFY and SCORE: what the base says of candidates, or of given answers, after a row.

A candidate's weight is the probability of its tokens; shares of all candidates sum to 1.
**Calibrated** (Zhao et al. 2021, 'Calibrate Before Use', arXiv 2102.09690): each share is divided
by the candidate's share on content-free input, and they are made to sum to 1 again. Content-free is
the version's own template with all its fields set to "N/A", to "[MASK]", or left empty, as in the
paper; the three shares are averaged, once for each version.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from encoders.packed.packing import PackedBatch, PackedRow
from encoders.packed.scoring import answer_log_probs
from orchestrator.domain.errors import InvalidInput
from orchestrator.inference.passes import Passes
from orchestrator.inference.query import Answer, Query
from orchestrator.inference.served_prompt import ServedPrompt

CONTENT_FREE = ("N/A", "[MASK]", "")


class Ranking:
    """Ranks and scores answers of `prompts`, by key, in `passes`."""

    def __init__(self, passes: Passes, prompts: Mapping[str, ServedPrompt]) -> None:
        self._passes, self._prompts = passes, prompts
        self._content_free: dict[str, Tensor] = {}

    def classify(self, queries: Sequence[Query], calibrate: bool = False) -> list[Answer]:
        """The likeliest candidate of each row's prompt, and the shares of all.

        Raises InvalidInput for a prompt without candidates.
        """
        rows = [self._candidates_row(query.prompt, query.context) for query in queries]
        found = self._log_shares(rows)
        if calibrate:
            priors = self._priors([query.prompt for query in queries])
            found = [
                calibrated(log_shares, priors[query.prompt])
                for query, log_shares in zip(queries, found, strict=True)
            ]
        return [
            _ranked(self._prompts[query.prompt].candidates, log_shares)
            for query, log_shares in zip(queries, found, strict=True)
        ]

    def score(self, queries: Sequence[Query]) -> list[Answer]:
        """The log-likelihood of each answer that a query gives, or of its prompt's candidates: the
        sum over its tokens, whatever their number.

        Raises InvalidData for an answer that has no tokens or is too long, InvalidInput where there
        are no answers.
        """
        rows = [self._answers_row(query) for query in queries]
        found = self._passes.run(rows, self._passes.model.logits, _answer_scores)
        return [
            Answer(scores=dict(zip(self._answers(query), scores.tolist(), strict=True)))
            for query, scores in zip(queries, found, strict=True)
        ]

    def _log_shares(self, rows: Sequence[PackedRow]) -> list[Tensor]:
        """Logarithms of the shares of each row's answers: a share may be too small for a float.
        The shares of answers of one token each follow from these tokens' logits alone."""
        model = self._passes.model
        if all(len(answer) == 1 for row in rows for answer in row.answers):
            found = self._passes.run(rows, model.label_logits, _label_scores)
        else:
            found = self._passes.run(rows, model.logits, _answer_scores)
        return [scores.double().log_softmax(0) for scores in found]

    def _priors(self, prompts: Sequence[str]) -> Mapping[str, Tensor]:
        """Logarithms of the shares of prompts' candidates without content. A prompt's are computed
        by itself, so that they do not depend on who asked first."""
        for name in dict.fromkeys(prompts):
            if name not in self._content_free:
                contexts = {self._prompts[name].encode_alike(value) for value in CONTENT_FREE}
                rows = [self._candidates_row(name, ids) for ids in sorted(filter(None, contexts))]
                if not rows:
                    raise InvalidInput(
                        f"{name} cannot be calibrated: its template takes no content-free input",
                        "Run it without calibration.",
                    )
                found = torch.stack(self._log_shares(rows))
                self._content_free[name] = found.logsumexp(0) - math.log(len(rows))
        return self._content_free

    def _candidates_row(self, name: str, context: tuple[int, ...]) -> PackedRow:
        if not self._prompts[name].candidates:
            raise InvalidInput(
                f"{name} has no candidates to choose from: its answers are generated",
                "Ask for the mode auto or generate.",
            )
        return PackedRow(name, context, self._prompts[name].candidate_ids)

    def _answers(self, query: Query) -> tuple[str, ...]:
        """Each answer once."""
        answers = query.answers or self._prompts[query.prompt].candidates
        if not answers:
            raise InvalidInput(
                f"there is nothing to score: the row gives no answers and {query.prompt} has no "
                "candidates",
                "Give the answers to score with the row.",
            )
        return tuple(dict.fromkeys(answers))

    def _answers_row(self, query: Query) -> PackedRow:
        prompt = self._prompts[query.prompt]
        answers = tuple(prompt.encode_answer(query.context, text) for text in self._answers(query))
        return PackedRow(query.prompt, query.context, answers)


def calibrated(log_shares: Tensor, content_free: Tensor) -> Tensor:
    """Shares [C] of candidates divided by those on content-free input [C], all as logarithms; they
    sum to 1 again."""
    return (log_shares - content_free).log_softmax(0)


def _ranked(candidates: Sequence[str], log_shares: Tensor) -> Answer:
    values = log_shares.exp().tolist()
    best = int(log_shares.argmax())
    return Answer(candidates[best], values[best], dict(zip(candidates, values, strict=True)))


def _answer_scores(logits: Tensor, batch: PackedBatch) -> list[Tensor]:
    """The log-probabilities of each row's answers."""
    return _by_row(answer_log_probs(logits, batch), batch)


def _label_scores(logits: Tensor, batch: PackedBatch) -> list[Tensor]:
    """The logits of each row's answers, of one token each."""
    return _by_row(logits.float(), batch)


def _by_row(scores: Tensor, batch: PackedBatch) -> list[Tensor]:
    """Scores [A] of answers, row by row."""
    counts = torch.bincount(batch.answer_row, minlength=len(batch.row_segments))
    return list(scores.split(counts.tolist()))
