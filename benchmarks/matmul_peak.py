"""What share of the machine's fp32 matmul peak does a packed step reach, and where is the rest?

Run as `python -m benchmarks.matmul_peak`. The peak is the best of large square products and of the
base's own shapes, on as many threads. FLOPs of a step: every frozen matrix is used twice, forward
and backward to its input (never for its weights' gradient), 2 FLOPs a weight and position each:
4 x parameters x positions, and the LM head at the positions kept. Attention is not counted.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.base_folder import base_name, load_packed
from benchmarks.command import new_parser, positive, run
from benchmarks.comparison import Timing
from benchmarks.machine import Surroundings, machine_notes
from benchmarks.op_profile import profile_groups
from benchmarks.report import at_least, document, seconds, table, write_results
from benchmarks.tutti_loop import TuttiLoop
from benchmarks.workload import Workload, make_tasks
from encoders.packed.packed_model import PackedModel
from orchestrator.training.worker import MAX_POSITIONS

TARGET_PERCENT = 60.0
SQUARES = (1024, 2048, 4096)
MEASURED_S = 0.5  # of products of one shape, at the least
FLOPS_PER_WEIGHT = 4  # and position: 2 forward, 2 backward to the input


def measure(folder: Path, arguments: argparse.Namespace) -> bool:
    """Measure the peak, the step and its profile."""
    surroundings = Surroundings(arguments.threads)
    packed = load_packed(folder)
    shape = Workload(num_virtual_tokens=arguments.virtual_tokens)
    tasks = make_tasks(shape, arguments.tasks, packed.model.config.vocab_size)
    loop = TuttiLoop(packed, tasks, shape, MAX_POSITIONS)
    with _counted_flops(packed.model) as flops:
        loop.step()
    peaks = matmul_peaks(packed.model, arguments.squares)
    timing = Timing()
    for _ in range(arguments.repeats):
        timing.measure(loop.step)
    peak = max(peaks.values())
    percent = 100 * flops[0] / timing.median_s / peak
    facts = surroundings.facts() | {
        "base": base_name(folder),
        "workload": asdict(shape),
        "num_tasks": len(tasks),
        "num_positions": loop.num_positions,
        "num_kept": loop.num_kept,
        "parameters": _num_layer_weights(packed.model),
        "flops": flops[0],
        "flops_by_formula": _formula(packed, loop),
        "matmul_flops_per_s": peaks,
        "step": asdict(timing),
        "percent_of_peak": percent,
        "verdict": at_least(percent, TARGET_PERCENT, "%"),
        "profile_s": profile_groups(packed, loop.step),
    }
    write_results(arguments.output, "matmul_peak", facts, _markdown(facts))
    print(f"{_markdown(facts)}\nwritten to {arguments.output}")
    return True


def matmul_peaks(model: Any, squares: list[int]) -> dict[str, float]:
    """FLOP/s of fp32 products: squares, and inputs of a full pass by the base's own matrices."""
    shapes = [(size, size, size) for size in squares]
    shapes += sorted({(MAX_POSITIONS, m.in_features, m.out_features) for m in _layers(model)})
    return {" x ".join(map(str, each)): _best_rate(*each) for each in shapes}


def _best_rate(rows: int, inner: int, columns: int) -> float:
    """Of [rows, inner] by a weight [columns, inner], as nn.Linear runs it."""
    inputs, weight = torch.randn(rows, inner), torch.randn(columns, inner)
    out = torch.empty(rows, columns)
    best, spent = float("inf"), 0.0
    while spent < MEASURED_S:
        started = time.perf_counter()
        torch.matmul(inputs, weight.T, out=out)
        taken = time.perf_counter() - started
        best, spent = min(best, taken), spent + taken
    return 2 * rows * inner * columns / best


def _layers(model: Any) -> list[nn.Linear]:
    """The matrices of the layers, without the LM head."""
    head = model.get_output_embeddings()
    return [m for m in model.modules() if isinstance(m, nn.Linear) and m is not head]


def _num_layer_weights(model: Any) -> int:
    return sum(module.weight.numel() for module in _layers(model))


def _formula(packed: PackedModel, loop: TuttiLoop) -> int:
    """The issue's count: 4 x parameters x positions + head."""
    layers = _num_layer_weights(packed.model) * loop.num_positions
    head: int = packed.model.get_output_embeddings().weight.numel() * loop.num_kept
    return FLOPS_PER_WEIGHT * (layers + head)


@contextmanager
def _counted_flops(model: Any) -> Iterator[list[int]]:
    """Counts what a step's products really are: a layer may run on fewer rows than all."""
    total = [0]

    def count(module: nn.Linear, inputs: tuple[Tensor, ...], _: object) -> None:
        rows = inputs[0].numel() // inputs[0].shape[-1]
        total[0] += FLOPS_PER_WEIGHT * rows * module.weight.numel()

    hooks = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, nn.Linear)]
    try:
        yield total
    finally:
        for hook in hooks:
            hook.remove()


def _markdown(facts: dict[str, Any]) -> str:
    peaks = [[name, f"{rate / 1e9:.0f}"] for name, rate in facts["matmul_flops_per_s"].items()]
    profile_s = facts["profile_s"]
    total_s = sum(profile_s.values())
    groups = [[name, f"{taken:.2f}", f"{taken / total_s:.0%}"] for name, taken in profile_s.items()]
    step_s = statistics.median(facts["step"]["seconds"])
    step = (
        f"A step of {facts['num_tasks']} tasks takes {seconds(facts['step']['seconds'])} s: "
        f"{facts['num_positions']} positions through {facts['parameters'] / 1e6:.1f} M weights, "
        f"logits at {facts['num_kept']}: {facts['flops'] / 1e9:.0f} GFLOP, "
        f"{facts['flops'] / step_s / 1e9:.0f} GFLOP/s."
    )
    flops = (
        f"FLOPs are counted at each matrix as it runs; the issue's formula, 4 x parameters x "
        f"positions + head, gives {facts['flops_by_formula'] / 1e9:.0f} GFLOP (the last layer "
        "runs on fewer positions where that is exact; small packs are filled up)."
    )
    profiled = (
        f"The profiler makes the step slower ({total_s:.2f} s): read its table as shares. Backward "
        "operations stand with the forward ones they belong to."
    )
    return document(
        "A packed step against the matmul peak",
        [f"- {step}", f"- Of the best rate below: {facts['verdict']}."],
        table(("fp32 product, rows x inner x columns", "GFLOP/s"), peaks, num_left=1),
        table(("part of a step", "s", "share"), groups, num_left=1),
        notes=[flops, profiled, f"Base: {facts['base']}.", *machine_notes(facts)],
    )


def _parse() -> argparse.Namespace:
    parser = new_parser("matmul_peak", __doc__)
    add = parser.add_argument
    add("--tasks", type=positive, default=8, metavar="N")
    add("--virtual-tokens", type=positive, default=20, metavar="P")
    add("--repeats", type=positive, default=5, help="timed steps")
    add("--squares", type=positive, nargs="+", default=list(SQUARES), metavar="SIZE")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(run(_parse(), measure))
