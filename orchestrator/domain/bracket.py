"""The rungs of a sweep: which trials stop there. Pure: no trainer, no clock.

At a rung, the trials that come to it are judged among all that ever did. Where all trials train at
once that is successive halving; where some wait for their turn, ASHA's stopping form.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from orchestrator.domain.sweep import HalvingSpec

#: Greater is better: a score, and what tells equal scores apart.
ScoreKey = tuple[float, float]


@dataclass(frozen=True)
class Standing:
    """How far a trial has come, and its best score so far."""

    step: int
    score: ScoreKey


class Bracket:
    """Judges trials, known by their indices. `scores` holds, by rung, those of all that came to it:
    all that is to be kept of a bracket."""

    def __init__(self, halving: HalvingSpec | None, num_steps: int) -> None:
        self._halving = halving
        rungs = halving.rungs(num_steps) if halving else []
        self.scores: dict[int, dict[int, ScoreKey]] = {rung: {} for rung in rungs}

    def judge(
        self, training: Mapping[int, Standing], ended: Mapping[int, Standing]
    ) -> dict[int, str]:
        """Those of `training` that stop after this step, each with the reason. Trials that `ended`
        before a rung count there with the score they ended with."""
        stopped: dict[int, str] = {}
        for rung, scores in self.scores.items():
            arrived = {index for index, trial in training.items() if trial.step == rung}
            scores |= {index: training[index].score for index in arrived}
            scores |= {index: trial.score for index, trial in ended.items() if trial.step <= rung}
            ranking = rank(scores)
            for place, index in enumerate(ranking, start=1):
                if index in arrived and place > self._num_kept(len(ranking)):
                    stopped[index] = f"stopped at step {rung}: rank {place} of {len(ranking)}"
        return stopped

    def _num_kept(self, num_trials: int) -> int:
        assert self._halving is not None
        return -(-num_trials // self._halving.factor)


def rank(scores: Mapping[int, ScoreKey]) -> list[int]:
    """Trials by index, the best first; of equal ones the lower index."""
    return sorted(sorted(scores), key=scores.__getitem__, reverse=True)
