"""What train_step.py found: its figures, its table, and whether the targets are met."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.comparison import Agreement, Timing
from benchmarks.machine import machine_notes
from benchmarks.report import at_least, document, seconds, table
from benchmarks.workload import Workload

TARGETS = {20: 3.0, 100: 4.0}  # times as fast as PEFT, by number of virtual tokens (issue 4)


@dataclass(frozen=True)
class StepResult:
    """One comparison. Pairs are Tutti's figure and PEFT's."""

    num_virtual_tokens: int
    num_tasks: int
    agreement: Agreement
    tutti: Timing
    workers: Timing | None
    peft: Timing
    num_positions: tuple[int, int]
    num_passes: tuple[int, int]
    text_lengths: Sequence[int]

    @property
    def best(self) -> Timing:
        """Tutti as it runs on several cores, a worker each; where there is one core, as it is."""
        return self.workers or self.tutti

    @property
    def ratio(self) -> float:
        """How many times faster Tutti is, by the medians."""
        return self.peft.median_s / self.best.median_s

    @property
    def cpu_ratio(self) -> float:
        return self.peft.median_cpu_s / self.best.median_cpu_s

    @property
    def verdict(self) -> str:
        target = TARGETS.get(self.num_virtual_tokens)
        return "no target" if target is None else at_least(self.ratio, target)


@dataclass(frozen=True)
class StepReport:
    """A run so far. `missing` names the comparisons to come: virtual tokens and tasks."""

    surroundings: Mapping[str, Any]
    base: str
    workload: Workload
    max_positions: int
    variants: Mapping[int, Mapping[str, Timing]]
    results: Sequence[StepResult]
    missing: Sequence[tuple[int, int]]
    in_double: Mapping[int, Agreement]

    def facts(self) -> dict[str, Any]:
        return {
            **self.surroundings,
            "base": self.base,
            "workload": asdict(self.workload),
            "max_positions": self.max_positions,
            "peft_variants_at_one_task": {
                count: {name: asdict(timing) for name, timing in timings.items()}
                for count, timings in self.variants.items()
            },
            "agreement_in_double": {v: asdict(each) for v, each in self.in_double.items()},
            "missing": [{"virtual_tokens": v, "tasks": n} for v, n in self.missing],
            "results": [
                asdict(r) | {"ratio": r.ratio, "cpu_ratio": r.cpu_ratio, "verdict": r.verdict}
                for r in self.results
            ],
        }

    def markdown(self) -> str:
        columns = (
            "virtual tokens", "tasks", "Tutti, s a step", "PEFT, s a step", "PEFT / Tutti",
            "by processor time", "Tutti in one process, s", "PEFT / that",
            "positions (passes), Tutti", "PEFT", "largest gradient error",
        )  # fmt: skip
        verdicts = [
            f"- {r.num_virtual_tokens} virtual tokens, {r.num_tasks} tasks: {r.verdict}."
            for r in self.results
        ]
        missing = [f"- {v} virtual tokens, {n} tasks: not measured yet." for v, n in self.missing]
        return document(
            "One training step: Tutti and PEFT",
            table(columns, map(_row, self.results)),
            [*verdicts, *missing, *self._agreements()],
            notes=[*self._notes(), *machine_notes(self.surroundings)],
        )

    def _agreements(self) -> list[str]:
        return [
            f"- With both bases in double precision, {count} virtual tokens: {each}."
            for count, each in self.in_double.items()
        ]

    def _notes(self) -> list[str]:
        shape = self.workload
        lengths = max((result.text_lengths for result in self.results), key=len)
        rounds = sorted({len(result.tutti.seconds) for result in self.results})
        timing = (
            f"Medians of {' or '.join(map(str, rounds))} rounds, sides in turn; in brackets the "
            "fastest and the slowest. Forward, backward and AdamW of every task; fp32. Both sides "
            "have the same cores: Tutti a worker process on each, as `tutti train` runs it, PEFT "
            "all of them as threads of its one process."
        )
        tasks = (
            f"Each task: {shape.batch_size} rows, virtual tokens first, MLP of "
            f"{shape.hidden_size}, texts of {sum(lengths) / len(lengths):.1f} tokens on average "
            f"({min(lengths)} to {max(lengths)}, log-normal), answers of {shape.answer_length}; at "
            f"most {self.max_positions} positions in a pass."
        )
        variants = [
            f"PEFT at one task, {count} virtual tokens (the fastest is the opponent): "
            + "; ".join(f"{name} {timing.median_s:.2f} s" for name, timing in timings.items())
            for count, timings in self.variants.items()
        ]
        return [timing, tasks, f"Base: {self.base}.", *variants]


def _row(result: StepResult) -> list[str]:
    positions = zip(result.num_positions, result.num_passes, strict=True)
    return [
        str(result.num_virtual_tokens),
        str(result.num_tasks),
        seconds(result.best.seconds),
        seconds(result.peft.seconds),
        f"{result.ratio:.2f}",
        f"{result.cpu_ratio:.2f}",
        seconds(result.tutti.seconds),
        f"{result.peft.median_s / result.tutti.median_s:.2f}",
        *(f"{count} ({passes})" for count, passes in positions),
        f"{result.agreement.gradient_error:.1e}",
    ]
