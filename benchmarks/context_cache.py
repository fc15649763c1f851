"""Text before the prompt: how much do texts computed once save over three epochs, and in a sweep?

Run as `python -m benchmarks.context_cache`. Exits 1 if the cached side disagrees with the packed
one in loss or gradient; that is checked in double precision, since rounding alone can move the
gradient of an untrained prompt by 2e-4 in fp32. PEFT cannot put a prompt after a text; it trains
the same rows with the prompt first, which has the same number of tokens.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.base_folder import base_name, load_packed, load_plain
from benchmarks.command import new_parser, not_negative, positive, run
from benchmarks.comparison import Agreement, Loop, Timing, agreement
from benchmarks.machine import Surroundings, machine_notes
from benchmarks.peft_loop import PeftLoop
from benchmarks.peft_loss import LEANEST
from benchmarks.report import at_least, document, seconds, table, write_results
from benchmarks.tutti_loop import TuttiLoop
from benchmarks.workload import BenchmarkTask, Workload, make_tasks, make_trials
from encoders.packed.context_cache import CacheBudget, ContextCache
from encoders.packed.packed_model import PackedModel
from orchestrator.training.worker import MAX_POSITIONS

NUM_EPOCHS = 3
NUM_CHECKED = 2  # tasks whose gradients are compared; in double precision they are slow
ROOM = CacheBudget(8 << 30)
CACHED, PACKED, PEFT = SIDES = ("cached", "packed", "PEFT")


@dataclass(frozen=True)
class Case:
    """Tasks that are trained together, and the issue's target against PEFT.

    PEFT trains `num_peft_tasks` of them: its tasks come one after the other and cost the same, so
    its time for all of them follows.
    """

    title: str
    target: float
    tasks: Sequence[BenchmarkTask]
    num_peft_tasks: int
    sides: Sequence[str] = SIDES


@dataclass(frozen=True)
class CaseResult:
    """The times of all epochs; PEFT's are for `num_peft_tasks` tasks."""

    case: Case
    agreement: Agreement
    timings: dict[str, Timing]

    @property
    def peft_factor(self) -> float:
        return len(self.case.tasks) / self.case.num_peft_tasks

    def times(self, side: str) -> list[float]:
        """Seconds of all tasks; PEFT's are multiplied where it did not train them all."""
        factor = self.peft_factor if side == PEFT else 1.0
        return [factor * each for each in self.timings[side].seconds]

    def ratio(self, side: str) -> float:
        """How many times longer than the cached side another takes."""
        factor = self.peft_factor if side == PEFT else 1.0
        return factor * self.timings[side].median_s / self.timings[CACHED].median_s

    def cpu_ratio(self, side: str) -> float:
        factor = self.peft_factor if side == PEFT else 1.0
        return factor * self.timings[side].median_cpu_s / self.timings[CACHED].median_cpu_s

    @property
    def verdict(self) -> str:
        return f"PEFT / cached {at_least(self.ratio(PEFT), self.case.target)}"


class Bases:
    """The base in the three forms that are asked for, and the workload."""

    def __init__(self, folder: Path, shape: Workload) -> None:
        self.packed, self.plain = load_packed(folder), load_plain(folder)
        self.folder, self.shape = folder, shape
        self.vocab_size: int = self.plain.config.vocab_size

    def compare(self, case: Case, repeats: int) -> CaseResult:
        """Check the first step in double precision, then time the epochs of each side in turn."""
        exact, checked = load_packed(self.folder, torch.float64), case.tasks[:NUM_CHECKED]
        cached, packed = (self._tutti(exact, checked, is_cached) for is_cached in (True, False))
        found = agreement(cached, packed, checked)
        del exact, cached, packed
        timings = {side: Timing() for side in case.sides}
        for _ in range(repeats if found.is_exact else 0):
            for side in case.sides:
                loop = self._open(side, case)
                timings[side].measure(partial(_epochs, loop))
        return CaseResult(case, found, timings)

    def _open(self, side: str, case: Case) -> Loop:
        if side == PEFT:
            return self._peft(case.tasks[: case.num_peft_tasks])
        return self._tutti(self.packed, case.tasks, side == CACHED)

    def _tutti(
        self, model: PackedModel, tasks: Sequence[BenchmarkTask], is_cached: bool
    ) -> TuttiLoop:
        """A fresh loop; its cache, if it has one, is empty: filling it is part of the time."""
        cache = ContextCache(model, ROOM) if is_cached else None
        return TuttiLoop(model, tasks, self.shape, MAX_POSITIONS, cache)

    def _peft(self, tasks: Sequence[BenchmarkTask]) -> PeftLoop:
        tutti = self._tutti(self.packed, tasks, False)
        weights = {task.name: tutti.weights(task.name) for task in tasks}
        return PeftLoop(self.plain, tasks, self.shape, weights, LEANEST)


def measure(folder: Path, arguments: argparse.Namespace) -> bool:
    """Both cases, written as they come; False if one is not exact."""
    surroundings = Surroundings(arguments.threads)
    shape = Workload(
        num_virtual_tokens=8,
        mean_text_length=arguments.text_length,
        length_spread=arguments.length_spread,
        prompt_last=True,
    )
    bases = Bases(folder, shape)
    results: list[CaseResult] = []
    for case in _cases(shape, bases.vocab_size, arguments):
        results.append(bases.compare(case, arguments.repeats))
        print(f"{case.title}: {results[-1].agreement}", flush=True)
        if not results[-1].agreement.is_exact:
            return False
        facts = surroundings.facts() | {
            "base": base_name(folder),
            "workload": asdict(shape),
            "results": [_figures(result) for result in results],
        }
        markdown = _markdown(facts, shape, results)
        write_results(arguments.output, "context_cache", facts, markdown)
    print(f"\n{markdown}\nwritten to {arguments.output}")
    return True


def _cases(shape: Workload, vocab_size: int, arguments: argparse.Namespace) -> list[Case]:
    cases = []
    if arguments.tasks:
        tasks = make_tasks(shape, arguments.tasks, vocab_size)
        cases.append(Case(f"{len(tasks)} tasks, each its own texts", 10.0, tasks, len(tasks)))
    if arguments.trials:
        trials = make_trials(shape, arguments.trials, vocab_size)
        num_peft = min(arguments.peft_trials or len(trials), len(trials))
        title = f"a sweep of {len(trials)} trials on the same texts"
        cases.append(Case(title, 12.0, trials, num_peft, (CACHED, PEFT)))
    return cases


def _epochs(loop: Loop) -> None:
    """An epoch is a step: each task has one batch of rows."""
    for _ in range(NUM_EPOCHS):
        loop.step()


def _figures(result: CaseResult) -> dict[str, Any]:
    case = result.case
    return {
        "case": case.title,
        "num_tasks": len(case.tasks),
        "num_peft_tasks": case.num_peft_tasks,
        "text_lengths": [task.text_lengths for task in case.tasks],
        "loss_error": result.agreement.loss_error,
        "gradient_error": result.agreement.gradient_error,
        "timings": {side: asdict(timing) for side, timing in result.timings.items()},
        "ratios": {side: result.ratio(side) for side in case.sides},
        "cpu_ratios": {side: result.cpu_ratio(side) for side in case.sides},
        "target": case.target,
        "verdict": result.verdict,
    }


def _markdown(facts: dict[str, Any], shape: Workload, results: Sequence[CaseResult]) -> str:
    blocks = [block for result in results for block in _blocks(result)]
    lengths = [n for result in results for task in result.case.tasks for n in task.text_lengths]
    timing = (
        f"Medians of {len(results[0].timings[PEFT].seconds)} rounds, sides in turn; in brackets "
        "the fastest and the slowest. Filling the empty cache is part of the cached side."
    )
    rows = (
        f"{shape.batch_size} rows a task, all in one step: an epoch is a step; "
        f"{shape.num_virtual_tokens} virtual tokens after texts of "
        f"{sum(lengths) / len(lengths):.0f} tokens on average ({min(lengths)} to "
        f"{max(lengths)}), answers of {shape.answer_length}; fp32."
    )
    sides = (
        "Cached against packed is checked in fp64. PEFT has its prompt first: another template, as "
        f'many tokens; "{LEANEST.name}".'
    )
    notes = [timing, rows, sides, f"Base: {facts['base']}.", *machine_notes(facts)]
    return document("Text before the prompt: three epochs", *blocks, notes=notes)


def _blocks(result: CaseResult) -> list[list[str]]:
    case = result.case
    rows = [
        [
            side,
            seconds(result.times(side)),
            f"{result.ratio(side):.1f}",
            f"{result.cpu_ratio(side):.1f}",
        ]
        for side in case.sides
    ]
    verdict = [f"- {result.verdict}.", f"- Cached against packed: {result.agreement}."]
    if case.num_peft_tasks < len(case.tasks):
        verdict.append(
            f"- **PEFT's time is extrapolated**: {case.num_peft_tasks} of {len(case.tasks)} trials "
            f"were run, and their time multiplied by {result.peft_factor:.3g}."
        )
    columns = ("side", "s", "/ cached", "by processor time")
    return [[f"## {case.title}"], table(columns, rows, num_left=1), verdict]


def _parse() -> argparse.Namespace:
    parser = new_parser("context_cache", __doc__)
    add = parser.add_argument
    add("--tasks", type=not_negative, default=2, metavar="N", help="0: leave out")
    add("--trials", type=not_negative, default=16, metavar="N", help="0: leave out the sweep")
    add("--peft-trials", type=positive, help="train these alone with PEFT, and multiply")
    add("--repeats", type=positive, default=3, help="timed rounds")
    add("--text-length", type=float, default=128.0, help="mean tokens of a text")
    add("--length-spread", type=float, default=0.6, help="0: all equally long")
    arguments = parser.parse_args()
    if not arguments.tasks + arguments.trials:
        parser.error("--tasks and --trials are both 0: nothing to measure")
    return arguments


if __name__ == "__main__":
    sys.exit(run(_parse(), measure))
