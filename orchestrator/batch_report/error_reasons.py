"""Why rows have no answer, most common first: messages that differ in names and numbers are one.

Memory is bounded: after MAX_REASONS different ones, all new ones are counted together.
"""

import re
from dataclasses import dataclass, field

MAX_REASONS = 200
MAX_CHARACTERS = 300
SHOWN_REASONS = 5
OTHERS = "other reasons"

_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")
_PLACE = re.compile(r"^.{0,300}?:\d+: ")  # `file:line: ` at the start
_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True)
class Reason:
    """`num_rows` rows failed like this; `example` is the message of the first, which is `row`."""

    num_rows: int
    row: int
    example: str


@dataclass
class ReasonCount:
    """Counts errors as they come."""

    _kinds: dict[str, Reason] = field(default_factory=dict)

    def add(self, error: str, row: int) -> None:
        kind = _kind(error)
        if kind not in self._kinds and len(self._kinds) >= MAX_REASONS:
            kind = error = OTHERS
        found = self._kinds.get(kind)
        if found is None:
            self._kinds[kind] = Reason(1, row, error[:MAX_CHARACTERS])
        else:
            self._kinds[kind] = Reason(found.num_rows + 1, found.row, found.example)

    def freeze(self) -> tuple[Reason, ...]:
        """The SHOWN_REASONS most common."""
        found = sorted(self._kinds.values(), key=lambda reason: (-reason.num_rows, reason.row))
        return tuple(found[:SHOWN_REASONS])


def _kind(error: str) -> str:
    """A message without what is its row's own."""
    text = _PLACE.sub("", error[:MAX_CHARACTERS])
    return _NUMBER.sub("#", _QUOTED.sub("'...'", text))
