"""Text first, prompt after it: three epochs with the texts computed once, with all packed, by PEFT.

Run as `python -m benchmarks.context_cache`. Exits 1 if the cached side disagrees with the packed
one in loss or gradient; that is checked in double precision, since rounding alone can move the
gradient of an untrained prompt by 2e-4 in fp32. PEFT cannot put a prompt after a text; it trains
the same rows with the prompt first, which has the same number of tokens.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.base_folder import base_folder
from benchmarks.comparison import MAX_RELATIVE_ERROR, Agreement, agreement
from benchmarks.machine import BusyMeter, describe_machine
from benchmarks.peft_loop import VARIANTS, PeftLoop
from benchmarks.train_step import base_name, load_bases
from benchmarks.tutti_loop import TuttiLoop
from benchmarks.workload import BenchmarkTask, Workload, make_tasks
from encoders.packed.context_cache import CacheBudget, ContextCache
from encoders.packed.packed_model import PackedModel
from orchestrator.bases.quiet_transformers import quiet_transformers
from orchestrator.domain.errors import TuttiError
from orchestrator.training.worker import MAX_POSITIONS

RESULTS = Path(__file__).parent / "results"
NUM_EPOCHS = 3
ROOM = CacheBudget(8 << 30)
SIDES = ("cached", "packed", "PEFT")


def main() -> int:
    """Measure, print the table, and write it to the results folder."""
    arguments = _parse()
    torch.set_num_threads(arguments.threads)
    shape = Workload(
        num_virtual_tokens=8,
        mean_text_length=arguments.text_length,
        length_spread=arguments.length_spread,
        prompt_last=True,
    )
    try:
        with base_folder(arguments.base) as folder:
            facts = _measure(folder, shape, arguments)
    except TuttiError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    if facts is None:
        return 1
    arguments.output.mkdir(parents=True, exist_ok=True)
    text = json.dumps(facts, indent=2) + "\n"
    (arguments.output / "context_cache.json").write_text(text, encoding="utf-8")
    (arguments.output / "context_cache.md").write_text(_markdown(facts), encoding="utf-8")
    print(f"\n{_markdown(facts)}\nwritten to {arguments.output}")
    return 0


def _measure(folder: Path, shape: Workload, arguments: argparse.Namespace) -> dict[str, Any] | None:
    packed, peft_base = load_bases(folder)
    tasks = make_tasks(shape, arguments.tasks, peft_base.config.vocab_size)
    found = _agreement(folder, tasks, shape)
    print(
        f"relative error of losses {found.loss_error:.1e}, of gradients {found.gradient_error:.1e}"
    )
    if not found.is_exact:
        print(f"at least {MAX_RELATIVE_ERROR:g}: not equal")
        return None
    weights = {t.name: _tutti(packed, tasks, shape, False).weights(t.name) for t in tasks}
    variant = VARIANTS[-1]  # the fastest of train_step.py
    makers: dict[str, Callable[[], Any]] = {
        "cached": lambda: _tutti(packed, tasks, shape, True),
        "packed": lambda: _tutti(packed, tasks, shape, False),
        "PEFT": lambda: PeftLoop(peft_base, tasks, shape, weights, variant),
    }
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    meter = BusyMeter.start()
    for _ in range(arguments.repeats):
        for side in SIDES:
            seconds[side].append(_epochs(makers[side]()))
            print(f"{side}: {seconds[side][-1]:.2f} s", flush=True)
    return {
        "machine": describe_machine(arguments.threads),
        "cores_of_others": meter.cores_of_others(),
        "base": base_name(folder),
        "workload": asdict(shape),
        "text_lengths": [length for task in tasks for length in task.text_lengths],
        "num_tasks": len(tasks),
        "loss_error": found.loss_error,
        "gradient_error": found.gradient_error,
        "seconds": seconds,
    }


def _tutti(
    packed: PackedModel, tasks: list[BenchmarkTask], shape: Workload, is_cached: bool
) -> TuttiLoop:
    """A fresh loop; its cache, if it has one, is empty: filling it is part of the time."""
    cache = ContextCache(packed, ROOM) if is_cached else None
    return TuttiLoop(packed, tasks, shape, MAX_POSITIONS, cache)


def _agreement(folder: Path, tasks: list[BenchmarkTask], shape: Workload) -> Agreement:
    """The cached side against the packed one, in double precision."""
    with quiet_transformers():
        exact = PackedModel.load(folder, torch.float64)
    return agreement(*(_tutti(exact, tasks, shape, cached) for cached in (True, False)), tasks)


def _epochs(loop: Any) -> float:
    started = time.perf_counter()
    for _ in range(NUM_EPOCHS):
        loop.step()
    return time.perf_counter() - started


def _markdown(facts: dict[str, Any]) -> str:
    medians = {side: statistics.median(facts["seconds"][side]) for side in SIDES}
    rows = [
        f"| {side} | {medians[side]:.2f} ({min(facts['seconds'][side]):.2f}-"
        f"{max(facts['seconds'][side]):.2f}) | {medians[side] / medians['cached']:.1f} |"
        for side in SIDES
    ]
    shape, lengths = facts["workload"], facts["text_lengths"]
    machine = ", ".join(f"{key} {value}" for key, value in facts["machine"].items())
    notes = (
        (
            f"Medians of {len(facts['seconds']['PEFT'])} rounds, sides in turn; in brackets the "
            "fastest and the slowest."
        ),
        (
            f"{facts['num_tasks']} tasks of {shape['batch_size']} rows a step, an epoch a step; "
            f"{shape['num_virtual_tokens']} virtual tokens after texts of "
            f"{sum(lengths) / len(lengths):.0f} tokens on average "
            f"({min(lengths)} to {max(lengths)}), answers of {shape['answer_length']}; fp32."
        ),
        (
            f"Cached against packed, in fp64: relative error of losses {facts['loss_error']:.1e}, "
            f"of gradients {facts['gradient_error']:.1e}. PEFT has its prompt first: "
            "another template, as many tokens."
        ),
        (
            f"Base: {facts['base']}. Machine: {machine}; other processes used "
            f"{facts['cores_of_others']:.2f} cores."
        ),
    )
    head = ("# Text before the prompt: three epochs", "", "| side | s | / cached |")
    lines = [*head, "| --- | ---: | ---: |", *rows, "", *(f"- {note}" for note in notes)]
    return "\n".join(lines) + "\n"


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.context_cache", description=__doc__)
    add = parser.add_argument
    add("--base", type=Path, help="a transformers folder (default: the registered smollm2-135m)")
    add("--tasks", type=int, default=2, metavar="N")
    add("--repeats", type=int, default=3, help="timed rounds")
    add("--threads", type=int, default=os.cpu_count(), help="default: all cores")
    add("--text-length", type=float, default=128.0, help="mean tokens of a text")
    add("--length-spread", type=float, default=0.6, help="0: all equally long")
    add("--output", type=Path, default=RESULTS, help="folder for context_cache.json and .md")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
