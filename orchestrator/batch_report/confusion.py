"""What was expected against what was answered: the most frequent classes, the rest pooled.

Memory is bounded whatever is generated: of a version, the first MAX_CLASSES texts of at most
MAX_CHARACTERS are told apart, and all others are counted as one. Hits are counted before that.
"""

from collections import Counter
from dataclasses import dataclass, field

MAX_CLASSES = 300
MAX_CHARACTERS = 200
SHOWN_CLASSES = 12


@dataclass(frozen=True)
class Confusion:
    """`counts[i][j]`: rows of class i that were answered with class j. Where texts were pooled, the
    last row and column hold all that `classes` does not name; `num_pooled_hits` of their common
    field were right all the same."""

    classes: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    is_pooled: bool
    num_pooled_hits: int


@dataclass
class ConfusionCount:
    """Counts (expected, answered) as they come."""

    _pairs: Counter[tuple[str | None, str | None]] = field(default_factory=Counter)
    _known: set[str] = field(default_factory=set)
    _num_hits: int = 0

    def add(self, expected: str, answered: str, is_right: bool) -> None:
        self._pairs[self._class(expected), self._class(answered)] += 1
        self._num_hits += is_right

    def _class(self, text: str) -> str | None:
        """The text, or None for what is not told apart."""
        if text in self._known:
            return text
        if len(text) > MAX_CHARACTERS or len(self._known) == MAX_CLASSES:
            return None
        self._known.add(text)
        return text

    def freeze(self) -> Confusion | None:
        """The SHOWN_CLASSES most frequent, as expected or answered, in the order of their names;
        None if nothing was counted."""
        if not self._pairs:
            return None
        frequency: Counter[str] = Counter()
        for (expected, answered), count in self._pairs.items():
            for text in {expected, answered} - {None}:
                frequency[str(text)] += count
        most = sorted(frequency, key=lambda text: (-frequency[text], text))[:SHOWN_CLASSES]
        classes = tuple(sorted(most))
        return self._matrix(classes)

    def _matrix(self, classes: tuple[str, ...]) -> Confusion:
        place = {text: index for index, text in enumerate(classes)}
        rest = len(classes)
        counts = [[0] * (rest + 1) for _ in range(rest + 1)]
        for (expected, answered), count in self._pairs.items():
            i, j = (
                rest if text is None else place.get(text, rest) for text in (expected, answered)
            )
            counts[i][j] += count
        is_pooled = any(counts[rest]) or any(row[rest] for row in counts)
        size = rest + is_pooled
        return Confusion(
            classes=classes,
            counts=tuple(tuple(row[:size]) for row in counts[:size]),
            is_pooled=is_pooled,
            num_pooled_hits=self._num_hits - sum(counts[i][i] for i in range(rest)),
        )
