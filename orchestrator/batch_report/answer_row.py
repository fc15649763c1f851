"""One row of a batch run's output, checked: what its schema says, or IntegrityError with its place.

The schema is in `orchestrator/batch_data`. Nothing else is taken for a row: a part that was cut,
edited or written by something else is refused, never counted.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.domain.errors import IntegrityError

_TEXT, _NUMBER = (str,), (int, float)
#: key -> what its value may be, where there is one
_KINDS: Mapping[str, tuple[type, ...]] = {
    "row": (int,),
    "task": _TEXT,
    "version": (int,),
    "digest": _TEXT,
    "answer": _TEXT,
    "score": _NUMBER,
    "scores": (dict,),
    "tokens": (int,),
    "expected": _TEXT,
    "error": _TEXT,
}


@dataclass(frozen=True)
class AnswerRow:
    """A row's answer or error. `version`: a number, None where its reference named nothing."""

    row: int
    task: str | None = None
    version: int | None = None
    answer: str | None = None
    score: float | None = None
    scores: Mapping[str, float] | None = None
    tokens: int | None = None
    expected: str | None = None
    error: str | None = None

    @classmethod
    def parse(cls, value: Any, place: str) -> "AnswerRow":
        """Check a decoded row; `place` is its file and line."""
        if not isinstance(value, dict):
            raise _altered(place, f"an output row is an object, this is {type(value).__name__}")
        for key, kinds in _KINDS.items():
            found = value.get(key)
            if found is not None and (isinstance(found, bool) or not isinstance(found, kinds)):
                raise _altered(place, f"{key!r} is {type(found).__name__}")
        scores = (value.get("scores") or {}).values()
        if not all(isinstance(score, _NUMBER) for score in scores):
            raise _altered(place, "'scores' holds what is no number")
        if value.get("row") is None:
            raise _altered(place, "it has no 'row'")
        known: dict[str, Any] = {name: value.get(name) for name in cls.__dataclass_fields__}
        return cls(**known)

    @property
    def ref(self) -> str | None:
        """`TASK@NUMBER` of the version that answered, or failed to; None where none was found."""
        return f"{self.task}@{self.version}" if self.task and self.version else None

    @property
    def said(self) -> str | None:
        """The answer; of given answers that were scored, the likeliest (the first of equals)."""
        if self.answer is None and self.scores:
            return max(self.scores, key=self.scores.__getitem__)
        return self.answer

    @property
    def is_right(self) -> bool | None:
        """Whether the answer is the known one; None where none is known, or nothing was said."""
        if self.expected is None or self.error is not None or self.said is None:
            return None
        return self.said == self.expected.strip()


def _altered(place: str, what: str) -> IntegrityError:
    return IntegrityError(
        f"{place}: not a row of a batch run's output: {what}",
        "The file is not what the run wrote: `tutti batch resume RUN` makes lost parts again.",
    )
