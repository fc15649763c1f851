"""Runs both sides on the same weights and rows: checks that they agree, then times them in turn."""

import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from benchmarks.peft_loop import VARIANTS, PeftLoop, PeftVariant
from benchmarks.tutti_loop import TuttiLoop
from benchmarks.workload import BenchmarkTask, Workload
from encoders.packed.packed_model import PackedModel

MAX_RELATIVE_ERROR = 1e-4


class Loop(Protocol):
    """A side: steps all its tasks, and tells what the last step took."""

    num_positions: int
    num_passes: int

    def step(self) -> dict[str, float]: ...

    def gradients(self, name: str) -> dict[str, Tensor]: ...


@dataclass
class Timing:
    """Seconds of each timed step: by the clock, and of processor time over all threads."""

    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    num_positions: int = 0
    num_passes: int = 0

    @property
    def median_s(self) -> float:
        return statistics.median(self.seconds)

    @property
    def median_cpu_s(self) -> float:
        return statistics.median(self.cpu_seconds)

    def measure(self, loop: Loop) -> None:
        """Take one step and note its time."""
        cpu, clock = time.process_time(), time.perf_counter()
        loop.step()
        self.seconds.append(time.perf_counter() - clock)
        self.cpu_seconds.append(time.process_time() - cpu)
        self.num_positions, self.num_passes = loop.num_positions, loop.num_passes


@dataclass(frozen=True)
class Agreement:
    """The largest relative errors between the sides, over all tasks and encoder parameters."""

    loss_error: float
    gradient_error: float

    @property
    def is_exact(self) -> bool:
        """False for a NaN as well."""
        return self.loss_error < MAX_RELATIVE_ERROR and self.gradient_error < MAX_RELATIVE_ERROR


@dataclass(frozen=True)
class Result:
    """What was found for one number of tasks."""

    num_tasks: int
    agreement: Agreement
    tutti: Timing
    peft: Timing

    @property
    def ratio(self) -> float:
        """How many times faster Tutti is, by the medians."""
        return self.peft.median_s / self.tutti.median_s

    @property
    def cpu_ratio(self) -> float:
        return self.peft.median_cpu_s / self.tutti.median_cpu_s


@dataclass(frozen=True)
class Sides:
    """Both bases, loaded once, and what is asked of them."""

    packed: PackedModel
    peft_base: Any
    workload: Workload
    max_positions: int

    def compare(self, tasks: Sequence[BenchmarkTask], variant: PeftVariant, repeats: int) -> Result:
        """Check the first step, which also warms up; then time `repeats` steps of each in turn."""
        tutti, peft = self._open(tasks, variant)
        found = agreement(tutti, peft, tasks)
        timings = Timing(), Timing()
        if found.is_exact:
            _measure_in_turn(zip(timings, (tutti, peft), strict=True), repeats)
        return Result(len(tasks), found, *timings)

    def time_variants(
        self, tasks: Sequence[BenchmarkTask], repeats: int
    ) -> dict[PeftVariant, Timing]:
        """Time PEFT's variants in turn, after one step each to warm up."""
        loops = {variant: self._open(tasks, variant)[1] for variant in VARIANTS}
        for loop in loops.values():
            loop.step()
        timings = {variant: Timing() for variant in VARIANTS}
        _measure_in_turn([(timings[v], loops[v]) for v in VARIANTS], repeats)
        return timings

    def _open(
        self, tasks: Sequence[BenchmarkTask], variant: PeftVariant
    ) -> tuple[TuttiLoop, PeftLoop]:
        tutti = TuttiLoop(self.packed, tasks, self.workload, self.max_positions)
        weights = {task.name: tutti.weights(task.name) for task in tasks}
        return tutti, PeftLoop(self.peft_base, tasks, self.workload, weights, variant)


def fastest(timings: Mapping[PeftVariant, Timing]) -> PeftVariant:
    return min(timings, key=lambda variant: timings[variant].median_s)


def _measure_in_turn(pairs: Iterable[tuple[Timing, Loop]], repeats: int) -> None:
    pairs = list(pairs)
    for _ in range(repeats):
        for timing, loop in pairs:
            timing.measure(loop)


def agreement(tutti: Loop, peft: Loop, tasks: Sequence[BenchmarkTask]) -> Agreement:
    """Take the first step of both and compare every task's loss and gradients."""
    ours, theirs = tutti.step(), peft.step()
    loss_error = max(abs(ours[name] - theirs[name]) / abs(theirs[name]) for name in theirs)
    errors = [
        error
        for task in tasks
        for error in _relative_errors(tutti.gradients(task.name), peft.gradients(task.name))
    ]
    return Agreement(loss_error, max(errors))


def _relative_errors(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> list[float]:
    """||ours - theirs|| / ||theirs|| of each parameter; both sides must have the same ones."""
    if ours.keys() != theirs.keys() or not theirs:
        raise ValueError(f"gradients of {sorted(ours)} against {sorted(theirs)}")
    return [float((ours[key] - theirs[key]).norm() / theirs[key].norm()) for key in theirs]
