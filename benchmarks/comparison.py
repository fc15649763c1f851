"""Two sides on the same weights and rows: that they agree, and how long they take in turn."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from benchmarks.workload import BenchmarkTask

#: In double precision, where the sides must agree.
MAX_RELATIVE_ERROR = 1e-4
#: In float32 the two sides round differently (other kernels, other orders), and 30 layers make more
#: of it: against double precision each side is up to 5e-4 off on random texts.
MAX_FLOAT32_ERROR = 5e-3


class Loop(Protocol):
    """A side: steps all its tasks, and tells what the last step took."""

    @property
    def num_positions(self) -> int: ...

    @property
    def num_passes(self) -> int: ...

    def step(self) -> dict[str, float]: ...

    def gradients(self, name: str) -> dict[str, Tensor]: ...


@dataclass
class Timing:
    """Seconds of each measured piece of work: by the clock, and of processor time, all threads."""

    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)

    @property
    def median_s(self) -> float:
        return statistics.median(self.seconds)

    @property
    def median_cpu_s(self) -> float:
        return statistics.median(self.cpu_seconds)

    def measure(
        self, work: Callable[[], object], cpu_clock: Callable[[], float] = time.process_time
    ) -> None:
        cpu, clock = cpu_clock(), time.perf_counter()
        work()
        self.seconds.append(time.perf_counter() - clock)
        self.cpu_seconds.append(cpu_clock() - cpu)


def time_in_turn(
    works: Mapping[str, Callable[[], object]],
    repeats: int,
    cpu_clock: Callable[[], float] = time.process_time,
) -> dict[str, Timing]:
    """Do all of `works`, one after the other, `repeats` times."""
    timings = {name: Timing() for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            timings[name].measure(work, cpu_clock)
    return timings


@dataclass(frozen=True)
class Agreement:
    """The largest relative errors between the sides, over all tasks and encoder parameters."""

    loss_error: float
    gradient_error: float
    limit: float = MAX_RELATIVE_ERROR

    @property
    def is_exact(self) -> bool:
        """False for a NaN as well."""
        return self.loss_error < self.limit and self.gradient_error < self.limit

    def __str__(self) -> str:
        errors = (
            f"relative error of losses {self.loss_error:.1e}, of gradients "
            f"{self.gradient_error:.1e}"
        )
        return errors if self.is_exact else f"{errors}: at least {self.limit:g}, not equal"


def agreement(
    ours: Loop, theirs: Loop, tasks: Sequence[BenchmarkTask], limit: float = MAX_RELATIVE_ERROR
) -> Agreement:
    """Take the first step of both and compare every task's loss and gradients."""
    our_losses, their_losses = ours.step(), theirs.step()
    loss_error = max(relative_error(our_losses[t.name], their_losses[t.name]) for t in tasks)
    return Agreement(loss_error, same_step(ours, theirs, tasks).gradient_error, limit)


def same_step(one: Loop, other: Loop, tasks: Sequence[BenchmarkTask]) -> Agreement:
    """Compare the gradients of the first step that both have taken."""
    errors = [
        error
        for task in tasks
        for error in _gradient_errors(one.gradients(task.name), other.gradients(task.name))
    ]
    return Agreement(0.0, max(errors))


def relative_error(ours: float, theirs: float) -> float:
    return abs(ours - theirs) / abs(theirs)


def _gradient_errors(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> list[float]:
    """||ours - theirs|| / ||theirs|| of each parameter; both sides must have the same ones."""
    if ours.keys() != theirs.keys() or not theirs:
        raise ValueError(f"gradients of {sorted(ours)} against {sorted(theirs)}")
    return [float((ours[key] - theirs[key]).norm() / theirs[key].norm()) for key in theirs]
