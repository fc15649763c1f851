"""Beam search of one row, step by step, as transformers' `generate(num_beams=...)` does it with
length_penalty 1.0 and early_stopping False (generation/utils.py, `_beam_search`, 5.23).

Where the log-probabilities are equal, so are the beams: sums are float32 and made in the same
order. A row ends when its running beams cannot become better than its finished ones by
transformers' own estimate, or when nothing may go on.

Shapes: W beams.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Ids = tuple[int, ...]

_NEVER = -1e9  # transformers' score of what must not win


@dataclass(frozen=True)
class FinishedBeam:
    """Generated ids with the sum of their log-probabilities; `score` is the mean."""

    ids: Ids
    log_prob: float
    score: float


class BeamSearch:
    """Keeps `num_beams` sequences of one row; `is_over(ids)` tells where one ends. `best` is the
    row's answer once `is_done`."""

    def __init__(self, num_beams: int, is_over: Callable[[Ids], bool]) -> None:
        self._is_over = is_over
        self._scores = torch.full((num_beams,), _NEVER)
        self._scores[0] = 0.0  # all beams are alike at first: one of them goes on
        self._finished: list[FinishedBeam] = []
        self.num_beams, self.is_done = num_beams, False
        self.running: list[Ids] = [()] * num_beams

    @property
    def best(self) -> FinishedBeam:
        return self._finished[0]

    def advance(self, logits: Tensor) -> list[int]:
        """Go on by one token from logits [W, vocabulary] of the running beams (the first time,
        [1, vocabulary]: they are alike). Returns which beam each running one continues."""
        sums = logits.float().log_softmax(-1).cpu() + self._scores[:, None]
        top, where = sums.flatten().topk(2 * self.num_beams)
        parents = (where // sums.shape[1]).tolist()
        tokens = (where % sums.shape[1]).tolist()
        beams = [(*self.running[p], token) for p, token in zip(parents, tokens, strict=True)]
        over = [self._is_over(beam) for beam in beams]
        self._finish(beams, top, over)
        kept_scores = top + torch.tensor(over).float() * _NEVER
        self._scores, kept = kept_scores.topk(self.num_beams)
        self.running = [beams[i] for i in kept.tolist()]
        self.is_done = all(over) or not self._can_improve()
        return [parents[i] for i in kept.tolist()]

    def _finish(self, beams: list[Ids], top: Tensor, over: list[bool]) -> None:
        """Of the likeliest beams, those that ended now join the finished ones; the best stay."""
        means = (top / len(beams[0])).tolist()
        self._finished += [
            FinishedBeam(beams[i], float(top[i]), means[i])
            for i in range(self.num_beams)
            if over[i]
        ]
        self._finished.sort(key=lambda beam: -beam.score)
        del self._finished[self.num_beams :]

    def _can_improve(self) -> bool:
        if len(self._finished) < self.num_beams:
            return True
        best = float(self._scores[0] / len(self.running[0]))
        return best > self._finished[-1].score
