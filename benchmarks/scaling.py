"""What does one more task cost, in seconds and in memory, as their number grows to a thousand?

Run as `python -m benchmarks.scaling`. Each number of tasks is measured in a fresh process, whose
memory stands at that of the base and of a full forward and backward pass before any task is there.
Rows are few and short, for the question is what tasks cost, not what activations do.
"""

import argparse
import ctypes
import gc
import multiprocessing
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from benchmarks.base_folder import base_name, load_packed
from benchmarks.command import new_parser, positive, run
from benchmarks.comparison import Timing
from benchmarks.machine import Surroundings, machine_notes
from benchmarks.report import at_most, document, seconds, table, write_results
from benchmarks.tutti_loop import TuttiLoop
from benchmarks.workload import Workload, make_tasks
from orchestrator.training.worker import MAX_POSITIONS

MB = 1 << 20
ADAMW_COPIES = 3  # the weights, and AdamW's two moments
FACTOR, EXTRA_BYTES = 1.2, 2 * MB  # issue 4's bound on a task's memory
TOLERANCE = 1.05  # a cost per task that grows by less counts as flat: rounds differ by as much


@dataclass(frozen=True)
class Point:
    """A process with so many tasks. Bytes are above those of the base and its activations: held
    after a step, and at the most during one."""

    num_tasks: int
    timing: Timing
    num_positions: int
    held_bytes: int
    peak_bytes: int
    encoder_bytes: int

    @property
    def bound_bytes(self) -> float:
        """What the issue allows a task."""
        return FACTOR * ADAMW_COPIES * self.encoder_bytes + EXTRA_BYTES


NO_TASKS = Point(0, Timing([0.0], [0.0]), 0, 0, 0, 0)


@dataclass(frozen=True)
class Added:
    """What each task costs that a point has more than the point before it, or than none."""

    point: Point
    seconds: float
    held_bytes: float
    peak_bytes: float


def added(points: Sequence[Point]) -> list[Added]:
    def per_task(figure: Callable[[Point], float], before: Point, after: Point) -> float:
        return (figure(after) - figure(before)) / (after.num_tasks - before.num_tasks)

    return [
        Added(
            after,
            per_task(lambda point: point.timing.median_s, before, after),
            per_task(lambda point: point.held_bytes, before, after),
            per_task(lambda point: point.peak_bytes, before, after),
        )
        for before, after in pairwise([NO_TASKS, *points])
    ]


def measure(folder: Path, arguments: argparse.Namespace) -> bool:
    """Measure the points, written as they come."""
    surroundings = Surroundings(arguments.threads)
    shape = Workload(
        num_virtual_tokens=arguments.virtual_tokens,
        batch_size=arguments.batch_size,
        mean_text_length=arguments.text_length,
        length_spread=0.0,
    )
    points: list[Point] = []
    for num_tasks in sorted(set(arguments.tasks)):
        points.append(_in_fresh_process(folder, shape, num_tasks, arguments))
        facts = surroundings.facts() | {
            "base": base_name(folder),
            "workload": asdict(shape),
            "points": [asdict(point) for point in points],
            "added": [asdict(each) | {"point": each.point.num_tasks} for each in added(points)],
            "missing": [n for n in sorted(set(arguments.tasks)) if n > num_tasks],
            "verdicts": _verdicts(points),
        }
        write_results(arguments.output, "scaling", facts, _markdown(facts, points))
        print(f"{num_tasks} tasks: {points[-1].timing.median_s:.2f} s a step", flush=True)
    print(f"\n{_markdown(facts, points)}\nwritten to {arguments.output}")
    return True


def _in_fresh_process(
    folder: Path, shape: Workload, num_tasks: int, arguments: argparse.Namespace
) -> Point:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as process:
        return process.submit(
            measure_point, folder, shape, num_tasks, arguments.repeats, arguments.threads
        ).result()


def measure_point(
    folder: Path, shape: Workload, num_tasks: int, repeats: int, threads: int
) -> Point:
    """In a process of its own: the base, a full pass, then the tasks and their steps."""
    torch.set_num_threads(threads)
    packed = load_packed(folder)
    vocab_size = packed.model.config.vocab_size
    row_positions = shape.num_virtual_tokens + shape.mean_text_length + shape.answer_length
    full = replace(shape, batch_size=int(MAX_POSITIONS // row_positions))
    filling = TuttiLoop(packed, make_tasks(full, 1, vocab_size), full, MAX_POSITIONS)
    _reset_peak()
    filling.step()
    del filling
    peak_before, held_before = _memory("VmHWM"), _held_memory()
    tasks = make_tasks(shape, num_tasks, vocab_size)
    loop = TuttiLoop(packed, tasks, shape, MAX_POSITIONS)
    loop.step()
    timing = Timing()
    for _ in range(repeats):
        timing.measure(loop.step)
    return Point(
        num_tasks,
        timing,
        loop.num_positions,
        _held_memory() - held_before,
        _memory("VmHWM") - peak_before,
        sum(weight.nbytes for weight in loop.weights(tasks[0].name).values()),
    )


def _held_memory() -> int:
    """Bytes of this process in memory, without what it freed and has not given back."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:  # glibc
        trim(0)
    return _memory("VmRSS")


def _memory(field: str) -> int:
    """Bytes, from proc(5): VmRSS is what is in memory now, VmHWM the most since the last reset."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) << 10
    raise OSError(f"/proc/self/status has no {field}")


def _reset_peak() -> None:
    """Begin VmHWM anew at what is in memory now (proc(5): clear_refs)."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _verdicts(points: Sequence[Point]) -> list[str]:
    verdicts = []
    rates = [point.timing.median_s / point.num_tasks for point in points]
    for (before, after), (rate, next_rate) in zip(pairwise(points), pairwise(rates), strict=True):
        growth = next_rate / rate
        judged = (
            "flat or falling: met" if growth <= TOLERANCE else "**rising: the target is missed**"
        )
        verdicts.append(
            f"{before.num_tasks} to {after.num_tasks} tasks: seconds per task and step "
            f"x {growth:.2f}, {judged}"
        )
    for each in added(points):
        used, bound = max(each.held_bytes, each.peak_bytes) / MB, each.point.bound_bytes / MB
        verdicts.append(
            f"up to {each.point.num_tasks} tasks, memory of an added task (the greater of the "
            f"two): {at_most(used, bound, ' MB')}"
        )
    return verdicts


def _markdown(facts: dict[str, Any], points: Sequence[Point]) -> str:
    shape, point = facts["workload"], points[-1]
    columns = (
        "tasks", "s a step", "ms per task", "positions/s", "MB in all, held", "at the most",
        "ms per added task", "MB per added task, held", "at the most",
    )  # fmt: skip
    rows = [_row(cost) for cost in added(points)]
    missing = [f"- {count} tasks: not measured yet." for count in facts["missing"]]
    rows_note = (
        f"Each task: {shape['batch_size']} row(s) a step, {shape['num_virtual_tokens']} virtual "
        f"tokens first, a text of {shape['mean_text_length']:g} tokens, an answer of "
        f"{shape['answer_length']}; MLP of {shape['hidden_size']}: "
        f"{point.encoder_bytes / MB:.2f} MB of weights."
    )
    bound_note = (
        f"The issue's bound for a task: {FACTOR:g} x its encoder's bytes x {ADAMW_COPIES} (weights "
        f"and AdamW's two moments) + 2 MB = {point.bound_bytes / MB:.2f} MB. 1 MB is 2^20 bytes."
    )
    memory_note = (
        "Memory is the process's resident set, above that after a full pass without tasks. Held: "
        "after a step, what was freed given back; at the most: during the steps (few tasks hide in "
        "the memory of the full pass before). Differences of some MB in all mean nothing."
    )
    rounds = f"Medians of {len(point.timing.seconds)} steps, after one to warm up; fp32."
    return document(
        "The cost of one more task",
        table(columns, rows),
        [f"- {verdict}." for verdict in facts["verdicts"]] + missing,
        notes=[rounds, rows_note, bound_note, memory_note, f"Base: {facts['base']}.",
               *machine_notes(facts)],
    )  # fmt: skip


def _row(cost: Added) -> list[str]:
    point, median = cost.point, cost.point.timing.median_s
    return [
        str(point.num_tasks),
        seconds(point.timing.seconds),
        f"{1000 * median / point.num_tasks:.1f}",
        f"{point.num_positions / median:.0f}",
        f"{point.held_bytes / MB:.1f}",
        f"{point.peak_bytes / MB:.1f}",
        f"{1000 * cost.seconds:.1f}",
        f"{cost.held_bytes / MB:.2f}",
        f"{cost.peak_bytes / MB:.2f}",
    ]


def _parse() -> argparse.Namespace:
    parser = new_parser("scaling", __doc__)
    add = parser.add_argument
    add("--tasks", type=positive, nargs="+", default=[1, 8, 32, 128, 1000], metavar="N")
    add("--repeats", type=positive, default=3, help="timed steps")
    add("--virtual-tokens", type=positive, default=4, metavar="P")
    add("--batch-size", type=positive, default=1, help="rows of a task in a step")
    add("--text-length", type=positive, default=4, help="tokens of a text")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(run(_parse(), measure))
