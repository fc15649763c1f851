"""The time of one training step of N P-tuning prompts, by Tutti and by PEFT.

Run as `python -m benchmarks.train_step`. Exits 1 if the two sides disagree in loss or gradient.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.base_folder import base_folder
from benchmarks.comparison import MAX_RELATIVE_ERROR, Result, Sides, fastest
from benchmarks.machine import BusyMeter, describe_machine, load_average
from benchmarks.report import Report
from benchmarks.workload import Workload, make_tasks
from encoders.packed.packed_model import PackedModel
from orchestrator.bases.quiet_transformers import quiet_transformers
from orchestrator.domain.errors import TuttiError
from orchestrator.training.worker import MAX_POSITIONS

RESULTS = Path(__file__).parent / "results"


def main() -> int:
    """Measure, print the table, and write it to the results folder."""
    arguments = _parse()
    torch.set_num_threads(arguments.threads)
    try:
        with base_folder(arguments.base) as folder:
            report = _measure(folder, arguments)
    except TuttiError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    if report is None:
        return 1
    report.write(arguments.output, "train_step")
    print(f"\n{report.markdown()}\nwritten to {arguments.output}")
    return 0


def _measure(folder: Path, arguments: argparse.Namespace) -> Report | None:
    """All comparisons; None as soon as one of them is not exact."""
    sides = Sides(*load_bases(folder), _workload(arguments), arguments.max_positions)
    vocab_size = sides.peft_base.config.vocab_size
    tasks = make_tasks(sides.workload, max(arguments.tasks), vocab_size)
    before, meter = load_average(), BusyMeter.start()
    variants = sides.time_variants(tasks[:1], arguments.repeats)
    opponent = fastest(variants)
    print(f"PEFT as: {opponent.name}")
    results = []
    for num_tasks in arguments.tasks:
        results.append(sides.compare(tasks[:num_tasks], opponent, arguments.repeats))
        _tell(results[-1])
        if not results[-1].agreement.is_exact:
            return None
    load = {"before": before, "after": load_average(), "cores_of_others": meter.cores_of_others()}
    return Report(
        describe_machine(arguments.threads), load, base_name(folder), sides.workload, tasks,
        arguments.max_positions, opponent, variants, results,
    )  # fmt: skip


def load_bases(folder: Path) -> tuple[PackedModel, Any]:
    """The base twice: as Tutti runs it, and as PEFT gets it."""
    with quiet_transformers() as transformers:
        packed = PackedModel.load(folder)
        base = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, use_safetensors=True
        )
    return packed, base


def _tell(result: Result) -> None:
    agreement = result.agreement
    print(
        f"{result.num_tasks} task(s): relative error of losses {agreement.loss_error:.1e}, "
        f"of gradients {agreement.gradient_error:.1e}",
        end="; " if agreement.is_exact else f": at least {MAX_RELATIVE_ERROR:g}, not equal\n",
    )
    if agreement.is_exact:
        times = f"{result.tutti.median_s:.2f} s against {result.peft.median_s:.2f} s"
        print(f"{times}, {result.ratio:.2f} times faster", flush=True)


def base_name(folder: Path) -> str:
    """The model's architecture and size; a folder's name says little to others."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    return (
        f"{config.architectures[0]}, {config.num_hidden_layers} layers of {config.hidden_size}, "
        f"vocabulary {config.vocab_size}"
    )


def _workload(arguments: argparse.Namespace) -> Workload:
    return Workload(
        mean_text_length=arguments.text_length,
        length_spread=arguments.length_spread,
        seed=arguments.seed,
    )


def _parse() -> argparse.Namespace:
    shape = Workload()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train_step", description=__doc__)
    add = parser.add_argument
    add("--base", type=Path, help="a transformers folder (default: the registered smollm2-135m)")
    add("--tasks", type=_positive, nargs="+", default=[1, 4, 8], metavar="N")
    add("--repeats", type=_positive, default=5, help="timed rounds")
    add("--threads", type=_positive, default=os.cpu_count(), help="default: all cores")
    add("--text-length", type=float, default=shape.mean_text_length, help="mean tokens of a text")
    add("--length-spread", type=float, default=shape.length_spread, help="0: all equally long")
    add("--max-positions", type=_positive, default=MAX_POSITIONS, help="of one packed pass")
    add("--seed", type=int, default=shape.seed)
    add("--output", type=Path, default=RESULTS, help="folder for train_step.json and .md")
    return parser.parse_args()


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is less than 1")
    return value


if __name__ == "__main__":
    sys.exit(main())
