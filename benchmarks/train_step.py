"""How much faster is a training step of N prompts, prompt first (exact mode), than PEFT's?

Run as `python -m benchmarks.train_step`. Exits 1 if the sides disagree in loss or gradient. Results
are written after each number of tasks, so a run that is cut keeps what it has.
"""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch

from benchmarks.base_folder import base_name, load_packed, load_plain
from benchmarks.command import new_parser, positive, run
from benchmarks.comparison import (
    MAX_FLOAT32_ERROR,
    Agreement,
    Timing,
    agreement,
    same_step,
    time_in_turn,
)
from benchmarks.machine import Surroundings
from benchmarks.peft_loop import PeftLoop
from benchmarks.peft_loss import VARIANTS, PeftVariant
from benchmarks.report import at_least, write_results
from benchmarks.train_step_report import TARGETS, StepReport, StepResult
from benchmarks.tutti_loop import TuttiLoop
from benchmarks.tutti_workers import TuttiWorkers
from benchmarks.workload import BenchmarkTask, Workload, make_tasks
from encoders.packed.packed_model import PackedModel
from orchestrator.training.worker import MAX_POSITIONS

NUM_CHECKED = 2  # tasks compared in double precision, which is slow


@dataclass(frozen=True)
class Sides:
    """Both bases, loaded once, and the workload both are given."""

    packed: PackedModel
    peft_base: Any
    workload: Workload
    max_positions: int

    def tasks(self, num_tasks: int) -> list[BenchmarkTask]:
        return make_tasks(self.workload, num_tasks, self.peft_base.config.vocab_size)

    def compare(
        self, num_tasks: int, variant: PeftVariant, repeats: int, workers: TuttiWorkers | None
    ) -> StepResult:
        """Check the first step, which also warms up; then time `repeats` steps of each in turn."""
        tasks = self.tasks(num_tasks)
        tutti, peft = self._open(tasks, variant)
        found = agreement(tutti, peft, tasks, MAX_FLOAT32_ERROR)
        works = {"one process": tutti.step, "PEFT": peft.step}
        if workers is not None:
            workers.open(tasks, self.workload)
            workers.step()
            apart = same_step(workers, tutti, tasks).gradient_error
            found = replace(found, gradient_error=max(found.gradient_error, apart))
            works["workers"] = workers.step
        cpu_clock = time.process_time if workers is None else workers.cpu_clock
        timings = time_in_turn(works, repeats if found.is_exact else 0, cpu_clock)
        lengths = [length for task in tasks for length in task.text_lengths]
        return StepResult(
            self.workload.num_virtual_tokens, num_tasks, found, timings["one process"],
            timings.get("workers"), timings["PEFT"],
            (tutti.num_positions, peft.num_positions), (tutti.num_passes, peft.num_passes), lengths,
        )  # fmt: skip

    def agree(self, variant: PeftVariant) -> Agreement:
        """Compare the first step of a few tasks."""
        tasks = self.tasks(NUM_CHECKED)
        return agreement(*self._open(tasks, variant), tasks)

    def time_variants(self, repeats: int) -> dict[str, Timing]:
        """Time PEFT's variants at one task, in turn, after one step each to warm up."""
        loops = {variant.name: self._open(self.tasks(1), variant)[1] for variant in VARIANTS}
        for loop in loops.values():
            loop.step()
        return time_in_turn({name: loop.step for name, loop in loops.items()}, repeats)

    def _open(
        self, tasks: Sequence[BenchmarkTask], variant: PeftVariant
    ) -> tuple[TuttiLoop, PeftLoop]:
        tutti = TuttiLoop(self.packed, tasks, self.workload, self.max_positions)
        weights = {task.name: tutti.weights(task.name) for task in tasks}
        return tutti, PeftLoop(self.peft_base, tasks, self.workload, weights, variant)


def measure(folder: Path, arguments: argparse.Namespace) -> bool:
    """All comparisons, written as they come; False as soon as one of them is not exact."""
    surroundings = Surroundings(arguments.threads)
    sides = _sides(folder, arguments, torch.float32)
    variants = {v: s.time_variants(max(arguments.repeats)) for v, s in sides.items()}
    opponents = {v: _fastest(timings) for v, timings in variants.items()}
    workers = None
    if arguments.threads > 1:
        workers = TuttiWorkers(folder, arguments.threads, arguments.max_positions)
    sizes = list(zip(arguments.tasks, arguments.repeats, strict=True))
    plan = list(product(arguments.virtual_tokens, sizes))
    in_double = _agree_in_double(folder, arguments, opponents)
    if not all(each.is_exact for each in in_double.values()):
        return False
    results: list[StepResult] = []
    for num_virtual, (num_tasks, repeats) in plan:
        result = sides[num_virtual].compare(
            num_tasks, opponents[num_virtual], repeats, workers if num_tasks > 1 else None
        )
        _tell(result)
        if not result.agreement.is_exact:
            return False
        results.append(result)
        missing = [(v, n) for v, (n, _) in plan[len(results) :]]
        facts = surroundings.facts(workers.worker_seconds() if workers else 0.0)
        report = StepReport(
            facts, base_name(folder), sides[num_virtual].workload,
            arguments.max_positions, variants, results, missing, in_double,
        )  # fmt: skip
        write_results(arguments.output, "train_step", report.facts(), report.markdown())
    print(f"\n{report.markdown()}\nwritten to {arguments.output}")
    return True


def _agree_in_double(
    folder: Path, arguments: argparse.Namespace, opponents: Mapping[int, PeftVariant]
) -> dict[int, Agreement]:
    """How far the sides agree with both bases in double precision."""
    found = {
        count: sides.agree(opponents[count])
        for count, sides in _sides(folder, arguments, torch.float64).items()
    }
    for count, each in found.items():
        print(f"in double precision, {count} virtual tokens: {each}", flush=True)
    return found


def _sides(folder: Path, arguments: argparse.Namespace, dtype: torch.dtype) -> dict[int, Sides]:
    """The sides for each number of virtual tokens, on the same two bases."""
    packed, plain = load_packed(folder, dtype), load_plain(folder, dtype)
    shape = Workload(
        mean_text_length=arguments.text_length,
        length_spread=arguments.length_spread,
        seed=arguments.seed,
    )
    return {
        count: Sides(
            packed, plain, replace(shape, num_virtual_tokens=count), arguments.max_positions
        )
        for count in arguments.virtual_tokens
    }


def _fastest(timings: Mapping[str, Timing]) -> PeftVariant:
    best = min(VARIANTS, key=lambda variant: timings[variant.name].median_s)
    print(f"PEFT as: {best.name}")
    return best


def _tell(result: StepResult) -> None:
    print(f"{result.num_tasks} task(s), {result.num_virtual_tokens} virtual tokens", end=": ")
    print(result.agreement)
    if result.agreement.is_exact:
        times = f"{result.best.median_s:.2f} s against {result.peft.median_s:.2f} s"
        target = TARGETS.get(result.num_virtual_tokens)
        print(f"{times}, {at_least(result.ratio, target) if target else result.ratio}", flush=True)


def _parse() -> argparse.Namespace:
    shape = Workload()
    parser = new_parser("train_step", __doc__)
    add = parser.add_argument
    add("--tasks", type=positive, nargs="+", default=[8, 32], metavar="N")
    add("--virtual-tokens", type=positive, nargs="+", default=[20, 100], metavar="P")
    add("--repeats", type=positive, nargs="+", default=[3], help="timed rounds: one number, or "
        "one for each of --tasks")  # fmt: skip
    add("--text-length", type=float, default=shape.mean_text_length, help="mean tokens of a text")
    add("--length-spread", type=float, default=shape.length_spread, help="0: all equally long")
    add("--max-positions", type=positive, default=MAX_POSITIONS, help="of one packed pass")
    add("--seed", type=int, default=shape.seed)
    arguments = parser.parse_args()
    if len(arguments.repeats) == 1:
        arguments.repeats *= len(arguments.tasks)
    if len(arguments.repeats) != len(arguments.tasks):
        parser.error("--repeats: give one number, or as many as --tasks has")
    return arguments


if __name__ == "__main__":
    sys.exit(run(_parse(), measure))
