"""Judges held-out rows by the spec's metric, and says which of two results is better."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from encoders.packed.packing import PackedBatch, PackedRow
from encoders.packed.scoring import greedy_matches, label_log_probs, rank_answers
from orchestrator.domain.task_spec import Metric
from orchestrator.training.task_data import Example, ranking_rows, training_rows


@dataclass(frozen=True)
class Score:
    """A metric over a set of rows, and the mean loss of an answer token."""

    metric: Metric
    value: float
    loss: float

    @property
    def key(self) -> tuple[float, float]:
        """Greater is better; equal values are told apart by the loss."""
        return (-self.loss if self.metric == "loss" else self.value, -self.loss)

    def reaches(self, target: float) -> bool:
        """Whether the metric is as good as `target`."""
        return self.value <= target if self.metric == "loss" else self.value >= target

    def as_tuple(self) -> tuple[Metric, float, float]:
        return self.metric, self.value, self.loss


class Evaluation:
    """One pass over held-out `rows`. Feed the logits of packs of them, in order, then ask the
    score."""

    def __init__(
        self,
        metric: Metric,
        prompt: str | None,
        examples: Sequence[Example],
        candidate_ids: tuple[tuple[int, ...], ...],
    ) -> None:
        self._metric = metric
        self._examples = examples
        if metric == "accuracy":
            self.rows = ranking_rows(prompt, examples, candidate_ids)
        else:
            self.rows = [
                PackedRow(prompt, row.context, (candidate_ids[example.candidate],))
                for row, example in zip(training_rows("", examples), examples, strict=True)
            ]
        self._hits: list[bool] = []
        self._losses: list[Tensor] = []

    def add(self, logits: Tensor, batch: PackedBatch) -> None:
        """Take the logits [K, vocabulary] of the next pack."""
        first = len(self._hits)
        num_rows = int(batch.answer_row.max()) + 1
        gold = [example.candidate for example in self._examples[first : first + num_rows]]
        if self._metric == "accuracy":
            ranks = rank_answers(logits, batch)
            self._hits += [int(r.argmax()) == g for r, g in zip(ranks, gold, strict=True)]
            starts = torch.tensor([0, *torch.bincount(batch.answer_row).cumsum(0)[:-1].tolist()])
            answers = starts + torch.tensor(gold)
        else:
            self._hits += greedy_matches(logits, batch).tolist()
            answers = torch.arange(num_rows)
        labels = torch.isin(batch.label_answer, answers.to(batch.label_answer.device))
        self._losses.append(-label_log_probs(logits, batch)[labels])

    def score(self) -> Score:
        """The score over all rows fed."""
        loss = float(torch.cat(self._losses).mean())
        hits = sum(self._hits) / len(self._hits)
        return Score(self._metric, loss if self._metric == "loss" else hits, loss)
