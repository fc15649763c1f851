"""Output rows and facts of a run, as a run writes them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from orchestrator.batch_report.answer_row import AnswerRow
from orchestrator.batch_report.run_facts import PinnedVersion, RunFacts, ShardFacts

Value = dict[str, Any]


def make_rows(num_rows: int) -> list[Value]:
    """Rows of two versions: colour@1 is right in two rows of three, its scores are its rows'; every
    tenth row of word@2 is an error."""
    rows: list[Value] = []
    for row in range(1, num_rows + 1):
        value: Value = {"row": row, "line": row}
        if row % 2:
            answer = "red" if row % 3 else "blue"
            value |= {"task": "colour", "version": 1, "answer": answer, "expected": "red"}
            value |= {"score": round(row % 7 / 7, 6), "scores": {"red": 0.5, "blue": 0.5}}
        elif row % 10:
            value |= {"task": "word", "version": 2, "answer": f"w{row}", "score": 0.25, "tokens": 3}
        else:
            value |= {"task": "word", "version": 2, "error": f"word@2: the row has {row} tokens"}
        rows.append(value)
    return rows


def parse(values: Sequence[Value]) -> list[AnswerRow]:
    return [AnswerRow.parse(value, "rows") for value in values]


def write_jsonl(path: Path, values: Sequence[Value]) -> Path:
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    return path


@pytest.fixture
def facts() -> RunFacts:
    return RunFacts(
        id="run-1",
        state="succeeded",
        created_at="2026-11-29T14:00:00+00:00",
        seconds=10.0,
        output="out",
        num_rows=100,
        num_shards=4,
        settings={"mode": "auto", "decoding": {"seed": 0}},
        inputs={"in.jsonl": "a" * 64},
        versions=(PinnedVersion("colour@1", "c" * 64, "b" * 64),),
        shards=tuple(ShardFacts(index, 25, 1.0 + index) for index in range(4)),
    )
