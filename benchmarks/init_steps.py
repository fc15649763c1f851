"""How many steps a prompt's start saves, on a real base and real tasks.

Run as `python -m benchmarks.init_steps`; see benchmarks/README.md.
"""

import argparse
import sys
import time
from pathlib import Path

from benchmarks.base_folder import base_name, load_packed
from benchmarks.command import new_parser, positive, run
from benchmarks.init_report import InitReport
from benchmarks.init_runs import InitRuns
from benchmarks.machine import Surroundings
from encoders.text.tokenization import TextTokenizer
from orchestrator.training.sharded_base import ShardedBase

TASKS = ("country-continent", "city-country", "noun-class", "language-id")


def measure(folder: Path, arguments: argparse.Namespace) -> bool:
    """Train, print the tables, and write them to the results folder."""
    base = ShardedBase(load_packed(folder), zero_stage=0)
    surroundings, clock = Surroundings(arguments.threads), time.perf_counter()
    runs = InitRuns(base, TextTokenizer.load(folder), arguments.tasks, arguments.every)
    curves = runs.train(range(arguments.seeds), arguments.steps)
    facts = surroundings.facts() | {
        "base": base_name(folder),
        "scale": runs.scale,
        "texts": runs.texts(),
    }
    report = InitReport(curves, arguments.steps, time.perf_counter() - clock, facts)
    report.write(arguments.output, "init_steps")
    print(f"{report.markdown()}\nwritten to {arguments.output}")
    return True


def _parse() -> argparse.Namespace:
    parser = new_parser("init_steps", __doc__)
    parser.set_defaults(threads=1)
    add = parser.add_argument
    add("--tasks", nargs="+", default=TASKS, metavar="TASK", help="two or more of examples/tasks")
    add("--seeds", type=positive, default=3, help="seeds of each task: 0, 1, ...")
    add("--steps", type=positive, help="steps of each run (default: the spec's own number)")
    add("--every", type=positive, default=20, help="steps between two evaluations")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(run(_parse(), measure))
