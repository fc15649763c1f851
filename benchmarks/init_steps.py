"""How many steps a prompt's start saves, on a real base and real tasks.

Run as `python -m benchmarks.init_steps`; see benchmarks/README.md.
"""

import argparse
import sys
import time
from pathlib import Path

import torch

from benchmarks.base_folder import base_folder
from benchmarks.init_report import InitReport
from benchmarks.init_runs import InitRuns
from benchmarks.machine import BusyMeter, describe_machine
from benchmarks.train_step import base_name
from encoders.packed.packed_model import PackedModel
from encoders.text.tokenization import TextTokenizer
from orchestrator.bases.quiet_transformers import quiet_transformers
from orchestrator.domain.errors import TuttiError
from orchestrator.training.sharded_base import ShardedBase

RESULTS = Path(__file__).parent / "results"
TASKS = ("country-continent", "city-country", "noun-class", "language-id")


def main() -> int:
    """Train, print the tables, and write them to the results folder."""
    arguments = _parse()
    torch.set_num_threads(arguments.threads)
    try:
        with base_folder(arguments.base) as folder:
            report = _measure(folder, arguments)
    except TuttiError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    report.write(arguments.output, "init_steps")
    print(f"{report.markdown()}\nwritten to {arguments.output}")
    return 0


def _measure(folder: Path, arguments: argparse.Namespace) -> InitReport:
    with quiet_transformers():
        base = ShardedBase(PackedModel.load(folder), zero_stage=0)
    meter, clock = BusyMeter.start(), time.perf_counter()
    runs = InitRuns(base, TextTokenizer.load(folder), arguments.tasks, arguments.every)
    curves = runs.train(range(arguments.seeds), arguments.steps)
    facts = {
        "machine": describe_machine(arguments.threads),
        "cores_of_others": meter.cores_of_others(),
        "base": base_name(folder),
        "scale": runs.scale,
        "texts": runs.texts(),
    }
    return InitReport(curves, arguments.steps, time.perf_counter() - clock, facts)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.init_steps", description=__doc__)
    add = parser.add_argument
    add("--base", type=Path, help="a transformers folder (default: the registered smollm2-135m)")
    add("--tasks", nargs="+", default=TASKS, metavar="TASK", help="two or more of examples/tasks")
    add("--seeds", type=int, default=3, help="seeds of each task: 0, 1, ...")
    add("--steps", type=int, help="steps of each run (default: the spec's own number)")
    add("--every", type=int, default=20, help="steps between two evaluations")
    add("--threads", type=int, default=1)
    add("--output", type=Path, default=RESULTS, help="folder for init_steps.json and .md")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
