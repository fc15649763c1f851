"""The command line that all benchmarks share: the base, the threads, where results go."""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.base_folder import base_folder
from orchestrator.domain.errors import TuttiError

RESULTS = Path(__file__).parent / "results"


def new_parser(name: str, doc: str | None) -> argparse.ArgumentParser:
    """A parser with --base, --threads and --output, for `python -m benchmarks.NAME`."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=doc)
    add = parser.add_argument
    add("--base", type=Path, help="a transformers folder (default: the registered smollm2-135m)")
    add("--threads", type=positive, default=os.cpu_count(), help="default: all cores")
    add("--output", type=Path, default=RESULTS, help=f"folder for {name}.json and .md")
    return parser


def run(arguments: argparse.Namespace, measure: Callable[[Path, argparse.Namespace], bool]) -> int:
    """Call `measure` with the base's folder; the exit status is 1 where it finds unequal sides."""
    torch.set_num_threads(arguments.threads)
    try:
        with base_folder(arguments.base) as folder:
            return 0 if measure(folder, arguments) else 1
    except TuttiError as error:
        print(error, file=sys.stderr)
        return error.exit_code


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is less than 1")
    return value


def not_negative(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{value} is less than 0")
    return value


def share(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{value:g} is not above 0 and at most 1")
    return value
