"""Two right/wrong results on the same rows: each share with its interval, their difference, and how
likely so large a difference would be by chance.

Intervals are of 95%. Wilson: E. B. Wilson, JASA 22 (1927). The difference: R. G. Newcombe,
Statistics in Medicine 17 (1998) 2635-2650, method 10. The test: McNemar, Psychometrika 12 (1947),
exact by the binomial distribution.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

Z = 1.959963984540054  # of the normal distribution: 95% lie within +-Z
SIGNIFICANT = 0.05

Interval = tuple[float, float]


@dataclass(frozen=True)
class Share:
    """`num_hits` of `num_rows` rows were right. At least one row."""

    num_hits: int
    num_rows: int

    @property
    def value(self) -> float:
        return self.num_hits / self.num_rows

    @property
    def interval(self) -> Interval:
        """Wilson's score interval, without continuity correction."""
        n, p = self.num_rows, self.value
        centre = p + Z * Z / (2 * n)
        half = Z * math.sqrt(p * (1 - p) / n + Z * Z / (4 * n * n))
        scale = 1 + Z * Z / n
        # Rounding must not put an end on the wrong side of the share.
        return min(p, max(0.0, (centre - half) / scale)), max(p, min(1.0, (centre + half) / scale))


@dataclass(frozen=True)
class PairedHits:
    """On how many rows both were right, only the first, only the second, neither."""

    both: int
    only_a: int
    only_b: int
    neither: int

    @classmethod
    def count(cls, a: Sequence[bool], b: Sequence[bool]) -> "PairedHits":
        """Of the hits of both on the same rows, in order; at least one row."""
        pairs = list(zip(a, b, strict=True))
        counts = (pairs.count(pair) for pair in ((True, True), (True, False), (False, True)))
        both, only_a, only_b = counts
        return cls(both, only_a, only_b, len(pairs) - both - only_a - only_b)

    @property
    def num_rows(self) -> int:
        return self.both + self.only_a + self.only_b + self.neither

    @property
    def a(self) -> Share:
        return Share(self.both + self.only_a, self.num_rows)

    @property
    def b(self) -> Share:
        return Share(self.both + self.only_b, self.num_rows)

    @property
    def difference(self) -> float:
        """The second's share less the first's."""
        return (self.only_b - self.only_a) / self.num_rows

    @property
    def difference_interval(self) -> Interval:
        """Newcombe's interval: square-and-add of Wilson's, with the rows' correlation."""
        a, b, phi = self.a, self.b, self._correlation
        (low_a, high_a), (low_b, high_b) = a.interval, b.interval
        below = _square_and_add(b.value - low_b, high_a - a.value, phi)
        above = _square_and_add(high_b - b.value, a.value - low_a, phi)
        return max(-1.0, self.difference - below), min(1.0, self.difference + above)

    @property
    def _correlation(self) -> float:
        """Phi of the four counts, with Newcombe's correction for continuity."""
        e, f, g, h = self.both, self.only_a, self.only_b, self.neither
        product = (e + f) * (g + h) * (e + g) * (f + h)
        if product == 0:
            return 0.0
        excess: float = e * h - f * g
        if excess > 0:
            excess = max(0.0, excess - self.num_rows / 2)
        return excess / math.sqrt(product)

    @property
    def p_value(self) -> float:
        """McNemar's, two-sided: is a side right alone more often than chance has it?"""
        n = self.only_a + self.only_b
        tail = sum(math.exp(_log_binomial(n, k)) for k in range(min(self.only_a, self.only_b) + 1))
        return min(1.0, 2 * tail)

    @property
    def is_significant(self) -> bool:
        return self.p_value < SIGNIFICANT


def _log_binomial(n: int, k: int) -> float:
    """The logarithm of C(n, k) / 2^n."""
    choose = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    return choose - n * math.log(2)


def _square_and_add(first: float, second: float, phi: float) -> float:
    return math.sqrt(max(0.0, first * first - 2 * phi * first * second + second * second))
