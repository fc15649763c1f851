"""What real_tasks.py found. Says which of opponent A's seconds were measured and which follow."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.machine import machine_notes
from benchmarks.report import at_least, document, seconds, table

TARGET_B, TARGET_A = 5.0, 10.0  # times as fast as the opponents (issue 4)


@dataclass(frozen=True)
class ProcessRun:
    """A process from its start to its end. Of those, `train_s` are of training and evaluation;
    `tasks` holds each one's losses, accuracies by step and, from PEFT, seconds of each step."""

    wall_s: float
    cpu_s: float
    train_s: float
    tasks: Mapping[str, Mapping[str, Any]]

    @property
    def start_s(self) -> float:
        return self.wall_s - self.train_s


@dataclass
class RealReport:
    """A run so far: rounds of Tutti and of B, and A's process of each task that it ran.

    A's arithmetic is B's (same rows, weights and steps), so A reaches the target when B does. Where
    A was cut short, or did not run, its time is its start-up plus B's number of steps and of
    evaluations at A's own time for one.
    """

    base: str
    targets: Mapping[str, float]
    every: int
    a_steps: int
    loss_error: float
    tutti: list[ProcessRun] = field(default_factory=list)
    b: list[ProcessRun] = field(default_factory=list)
    a: dict[str, ProcessRun] = field(default_factory=dict)
    surroundings: Mapping[str, Any] = field(default_factory=dict)

    def facts(self) -> dict[str, Any]:
        facts = {**self.surroundings, **asdict(self)}
        del facts["surroundings"]
        if self.a:
            facts["a_total_s"] = self.a_total_s()
            facts["a_measured_s"] = sum(run.wall_s for run in self.a.values())
            facts["a_is_extrapolated"] = self._is_extrapolated()
        return facts | {"verdicts": self._verdicts()}

    def a_total_s(self) -> float:
        """Opponent A's seconds for all tasks, measured or extrapolated."""
        return sum(self._a_seconds(task)[0] for task in self.targets)

    def _a_seconds(self, task: str) -> tuple[float, bool]:
        """A's seconds for a task, and whether they were measured."""
        theirs = self.b[0].tasks[task]
        num_steps, num_evaluations = len(theirs["losses"]), len(theirs["accuracies"])
        own = self.a.get(task)
        if own and len(own.tasks[task]["losses"]) == num_steps:
            return own.wall_s, True
        start_s = _median([run.start_s for run in self.a.values()])
        step_s = self._a_unit(task, "step_s")
        evaluation_s = self._a_unit(task, "evaluation_s")
        return start_s + num_steps * step_s + num_evaluations * evaluation_s, False

    def _a_unit(self, task: str, unit: str) -> float:
        """A's seconds of one step or evaluation of a task: its own, or B's times what the tasks
        that A ran say."""
        if task in self.a:
            return _median(self.a[task].tasks[task][unit])

        def of_b(name: str) -> float:
            return _median(self.b[0].tasks[name][unit])

        factors = [_median(run.tasks[n][unit]) / of_b(n) for n, run in self.a.items()]
        return of_b(task) * _median(factors)

    def _is_extrapolated(self) -> bool:
        return not all(self._a_seconds(task)[1] for task in self.targets)

    def _verdicts(self) -> list[str]:
        verdicts = []
        tutti_s = _median([run.wall_s for run in self.tutti])
        tutti_cpu_s = _median([run.cpu_s for run in self.tutti])
        if self.b:
            b_s = _median([run.wall_s for run in self.b])
            b_cpu_s = _median([run.cpu_s for run in self.b])
            verdicts.append(
                f"B / Tutti {at_least(b_s / tutti_s, TARGET_B)}; by processor time "
                f"{b_cpu_s / tutti_cpu_s:.2f}x"
            )
        if self.a:
            source = "extrapolated in part" if self._is_extrapolated() else "measured"
            ratio = self.a_total_s() / tutti_s
            verdicts.append(f"A / Tutti ({source}) {at_least(ratio, TARGET_A)}")
        return verdicts

    def markdown(self) -> str:
        blocks = [self._sides(), [f"- {verdict}." for verdict in self._verdicts()], self._tasks()]
        notes = [*self._notes(), *machine_notes(self.surroundings)]
        return document("Real tasks to a fixed held-out accuracy", *blocks, notes=notes)

    def _sides(self) -> list[str]:
        rows = [
            [name, seconds([r.wall_s for r in runs]), seconds([r.start_s for r in runs]),
             seconds([r.cpu_s for r in runs]), str(len(runs))]
            for name, runs in (("Tutti", self.tutti), ("B, one PEFT process", self.b))
            if runs
        ]  # fmt: skip
        if self.a:
            start_s = seconds([run.start_s for run in self.a.values()])
            rows.append(
                ["A, a PEFT process a task", f"{self.a_total_s():.1f}", f"{start_s} each", "", "1"]
            )
        columns = ("side", "s in all", "of them start-up and load", "processor s", "rounds")
        return table(columns, rows, num_left=1)

    def _tasks(self) -> list[str]:
        columns = (
            "task", "target", "Tutti: steps, accuracy", "B: steps, accuracy", "A, s",
        )  # fmt: skip
        rows = [
            [
                task,
                f"{target:.2f}",
                _outcome(self.tutti[0].tasks[task], target),
                _outcome(self.b[0].tasks[task], target) if self.b else "",
                self._a_cell(task),
            ]
            for task, target in self.targets.items()
        ]
        return table(columns, rows, num_left=1)

    def _a_cell(self, task: str) -> str:
        if not self.a:
            return "not run"
        value, is_measured = self._a_seconds(task)
        return f"{value:.1f}" if is_measured else f"{value:.1f} (extrapolated)"

    def _notes(self) -> list[str]:
        time = (
            "Medians over rounds, sides in turn; in brackets the fastest and the slowest. From the "
            "start of a process to its end: imports, base, context cache, steps, evaluations. PEFT "
            "is not charged for reading and encoding rows, nor Tutti for Ray's start (20 to 90 s)."
        )
        ends = (
            f"Evaluations every {self.every} steps, on the eval rows, by ranking; a task ends when "
            "one reaches the target. **Missed**: it ran out of steps, and counts with all of them."
        )
        templates = (
            "Tutti trains each task's own template; PEFT can put a prompt first alone. Same rows, "
            "first weights, batches, learning rate, schedule, clipping. With Tutti's prompts first "
            f"too, the first losses differ by {self.loss_error:.1e} at most."
        )
        return [time, ends, templates, self._a_note(), f"Base: {self.base}."]

    def _a_note(self) -> str:
        steps = f"its first {self.a_steps} steps" if self.a_steps else "all its steps"
        measured_s = sum(run.wall_s for run in self.a.values())
        return (
            f"A ran {len(self.a)} of {len(self.targets)} tasks, each for {steps} at most: "
            f"{measured_s:.0f} s measured. Its arithmetic is B's, so it ends where B does; "
            "extrapolated seconds are its start-up, and B's steps and evaluations at A's own time."
        )


def _median(values: Sequence[float]) -> float:
    return float(statistics.median(values))


def _outcome(task: Mapping[str, Any], target: float) -> str:
    best = max(task["accuracies"].values())
    missed = "" if best >= target else ", **missed**"
    return f"{len(task['losses'])}, {best:.2f}{missed}"
