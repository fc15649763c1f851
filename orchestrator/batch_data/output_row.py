"""One row of a batch run's output, as JSON and as Parquet. Nothing in it depends on when or where
a row was answered, so equal runs give equal bytes.

JSONL: an object with the keys below in this order, without those that are None. Parquet: these
columns, null for None; `row`, `line`, `version` and `tokens` int64, `score` double, `scores`
map<string, double>, `embedding` list<float>, the others string (an `id` that is a number is its
digits). Numbers are rounded to 6 decimals.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

NUM_DECIMALS = 6


@dataclass(frozen=True)
class OutputRow:
    """`row` from 1 over all files; `file` only where the input is several; `line` from 1 in its
    file. An `error` stands in place of an answer."""

    row: int
    file: str | None = None
    line: int = 0
    id: str | int | None = None
    task: str | None = None
    version: int | None = None
    digest: str | None = None
    answer: str | None = None
    score: float | None = None
    scores: Mapping[str, float] | None = None
    tokens: int | None = None
    embedding: Sequence[float] | None = None
    expected: str | None = None
    error: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Raises ValueError for a number that is not finite: JSON has none."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values["score"] = None if self.score is None else rounded(self.score)
        if self.scores is not None:
            values["scores"] = {name: rounded(score) for name, score in self.scores.items()}
        if self.embedding is not None:
            values["embedding"] = [rounded(number) for number in self.embedding]
        return {name: value for name, value in values.items() if value is not None}

    def to_line(self) -> bytes:
        """The row as a line of JSONL, with its end."""
        return f"{json.dumps(self.to_json(), ensure_ascii=False, allow_nan=False)}\n".encode()


COLUMNS = tuple(field.name for field in fields(OutputRow))


def rounded(number: float) -> float:
    """To 6 decimals, and never -0.0."""
    return round(float(number), NUM_DECIMALS) + 0.0
