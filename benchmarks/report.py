"""Results as JSON (every figure) and as Markdown (what people read), and the issue's verdicts."""

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any


def write_results(folder: Path, name: str, facts: Mapping[str, Any], markdown: str) -> None:
    """Write `name`.json and `name`.md into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    (folder / f"{name}.md").write_text(markdown, encoding="utf-8")


def document(title: str, *blocks: Iterable[str], notes: Iterable[str]) -> str:
    """A Markdown page: its title, blocks of lines (tables, verdicts), and notes as a list."""
    lines = [f"# {title}", ""]
    for block in blocks:
        lines += [*block, ""]
    return "\n".join([*lines, *(f"- {note}" for note in notes)]) + "\n"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], num_left: int = 0) -> list[str]:
    """A Markdown table; the first `num_left` columns hold words, the others numbers."""
    alignment = ["---"] * num_left + ["---:"] * (len(columns) - num_left)
    return [f"| {' | '.join(cells)} |" for cells in (columns, alignment, *rows)]


def seconds(values: Sequence[float]) -> str:
    """The median, and in brackets the least and the most."""
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


def at_least(value: float, target: float, unit: str = "x") -> str:
    """Whether `value` reaches `target`, and by how much it does not."""
    if value >= target:
        return f"{value:.2f}{unit}: the target of {target:g}{unit} is met"
    return _missed(value, target, unit, target - value)


def at_most(value: float, target: float, unit: str) -> str:
    """Whether `value` stays within `target`, and by how much it does not."""
    if value <= target:
        return f"{value:.2f}{unit}: the target of at most {target:.2f}{unit} is met"
    return _missed(value, target, unit, value - target)


def _missed(value: float, target: float, unit: str, gap: float) -> str:
    return (
        f"{value:.2f}{unit}: **the target of {target:.4g}{unit} is missed by {gap:.2f}{unit}** "
        f"({gap / target:.0%})"
    )
