"""Results as JSON (every figure) and as Markdown (the table people read)."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.comparison import Result, Timing
from benchmarks.peft_loop import PeftVariant
from benchmarks.workload import BenchmarkTask, Workload

BUSY_CORES = 0.2  # of other processes, on average: above this, times by the clock are not trusted


@dataclass(frozen=True)
class Report:
    """One run of the benchmark. `load` holds load averages and the cores others kept busy."""

    machine: Mapping[str, Any]
    load: Mapping[str, Any]
    base: str
    workload: Workload
    tasks: Sequence[BenchmarkTask]
    max_positions: int
    opponent: PeftVariant
    variants: Mapping[PeftVariant, Timing]
    results: Sequence[Result]

    @property
    def was_busy(self) -> bool:
        return bool(self.load["cores_of_others"] > BUSY_CORES)

    def write(self, folder: Path, name: str) -> None:
        """Write `name`.json and `name`.md into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self._facts(), indent=2) + "\n"
        (folder / f"{name}.json").write_text(text, encoding="utf-8")
        (folder / f"{name}.md").write_text(self.markdown(), encoding="utf-8")

    def markdown(self) -> str:
        lines = ["# One training step: Tutti and PEFT", "", *self._table(), "", *self._notes()]
        return "\n".join(lines) + "\n"

    def _table(self) -> list[str]:
        columns = (
            "tasks", "Tutti, s a step", "PEFT, s a step", "PEFT / Tutti", "by processor time",
            "positions (passes), Tutti", "PEFT", "largest gradient error",
        )  # fmt: skip
        rows = [_row(result) for result in self.results]
        return [_line(columns), _line(["---:"] * len(columns)), *map(_line, rows)]

    def _notes(self) -> list[str]:
        notes = (self._timing_note(), self._workload_note(), self._opponent_note())
        machine = ", ".join(f"{key} {value}" for key, value in self.machine.items())
        return [f"- {note}" for note in (*notes, f"Machine: {machine}.", self._load_note())]

    def _timing_note(self) -> str:
        return (
            f"Medians of {len(self.results[0].tutti.seconds)} rounds, sides in turn; in brackets "
            "the fastest and the slowest. Forward, backward and AdamW of every task; fp32."
        )

    def _workload_note(self) -> str:
        shape, lengths = self.workload, self._text_lengths()
        return (
            f"Each task: {shape.batch_size} rows, {shape.num_virtual_tokens} virtual tokens first, "
            f"MLP of {shape.hidden_size}, texts of {sum(lengths) / len(lengths):.1f} tokens on "
            f"average ({min(lengths)} to {max(lengths)}, log-normal), answers of "
            f"{shape.answer_length}; at most {self.max_positions} positions, counted as if nothing "
            "were shared, in a packed pass."
        )

    def _opponent_note(self) -> str:
        variants = "; ".join(f"{v.name}: {t.median_s:.2f} s" for v, t in self.variants.items())
        return (
            f'Base: {self.base}. PEFT as "{self.opponent.name}", the fastest way at one task '
            f"({variants})."
        )

    def _load_note(self) -> str:
        load = self.load
        return (
            f"{'**The machine was busy**' if self.was_busy else 'The machine was quiet'}: other "
            f"processes used {load['cores_of_others']:.2f} cores on average (load average "
            f"{load['before'][0]} before, {load['after'][0]} after)."
        )

    def _text_lengths(self) -> list[int]:
        return [length for task in self.tasks for length in task.text_lengths]

    def _facts(self) -> dict[str, Any]:
        return {
            "machine": dict(self.machine),
            "load": {**self.load, "was_busy": self.was_busy},
            "base": self.base,
            "workload": asdict(self.workload),
            "text_lengths": {task.name: task.text_lengths for task in self.tasks},
            "max_positions": self.max_positions,
            "opponent": self.opponent.name,
            "peft_variants_at_one_task": {v.name: asdict(t) for v, t in self.variants.items()},
            "results": [
                {**asdict(result), "ratio": result.ratio, "cpu_ratio": result.cpu_ratio}
                for result in self.results
            ],
        }


def _row(result: Result) -> list[str]:
    return [
        str(result.num_tasks),
        _seconds(result.tutti),
        _seconds(result.peft),
        f"{result.ratio:.2f}",
        f"{result.cpu_ratio:.2f}",
        f"{result.tutti.num_positions} ({result.tutti.num_passes})",
        f"{result.peft.num_positions} ({result.peft.num_passes})",
        f"{result.agreement.gradient_error:.1e}",
    ]


def _seconds(timing: Timing) -> str:
    return f"{timing.median_s:.2f} ({min(timing.seconds):.2f}-{max(timing.seconds):.2f})"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
