"""Scores counted in bins of equal width: how they are spread, and whether they mean what they say.

A score is the probability a version gives its answer. Where the answer is known, the share of right
ones in a bin should be the bin's mean score; the expected calibration error is the mean distance of
the two, weighted by rows (Guo et al., ICML 2017; Naeini et al., AAAI 2015).
"""

from dataclasses import dataclass, field

NUM_BINS = 10


@dataclass(frozen=True)
class ScoreBin:
    """Scores in [low, high); of the last bin, in [low, 1]. `num_known`: rows whose answer is known,
    `num_hits` the right ones among them, `mean_known` their mean score (None without any)."""

    low: float
    high: float
    num_rows: int
    num_known: int
    num_hits: int
    mean_known: float | None


@dataclass(frozen=True)
class Calibration:
    """Bins from 0 to 1 in order. `error`: the expected calibration error; None if nothing is
    known."""

    bins: tuple[ScoreBin, ...]
    num_rows: int
    mean: float
    error: float | None


@dataclass
class ScoreCount:
    """Counts scores as they come."""

    _rows: list[int] = field(default_factory=lambda: [0] * NUM_BINS)
    _known: list[int] = field(default_factory=lambda: [0] * NUM_BINS)
    _hits: list[int] = field(default_factory=lambda: [0] * NUM_BINS)
    _sums: list[float] = field(default_factory=lambda: [0.0] * NUM_BINS)
    _total: float = 0.0

    def add(self, score: float, is_right: bool | None) -> None:
        """A probability; one that rounding put outside 0 to 1 counts at the end."""
        score = min(1.0, max(0.0, score))
        place = min(NUM_BINS - 1, int(score * NUM_BINS))
        self._rows[place] += 1
        self._total += score
        if is_right is not None:
            self._known[place] += 1
            self._hits[place] += is_right
            self._sums[place] += score

    def freeze(self) -> Calibration | None:
        """None if there were no scores."""
        num_rows, num_known = sum(self._rows), sum(self._known)
        if not num_rows:
            return None
        distance = sum(
            abs(total - hits) for total, hits in zip(self._sums, self._hits, strict=True)
        )
        return Calibration(
            bins=tuple(self._bin(place) for place in range(NUM_BINS)),
            num_rows=num_rows,
            mean=self._total / num_rows,
            error=distance / num_known if num_known else None,
        )

    def _bin(self, place: int) -> ScoreBin:
        known = self._known[place]
        return ScoreBin(
            low=place / NUM_BINS,
            high=(place + 1) / NUM_BINS,
            num_rows=self._rows[place],
            num_known=known,
            num_hits=self._hits[place],
            mean_known=self._sums[place] / known if known else None,
        )
