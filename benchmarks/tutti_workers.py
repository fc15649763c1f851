"""Tutti's side as `tutti train` runs it: a worker process a core, tasks shared among them.

Each worker holds the base (its weights are mapped from one file) and steps its own tasks on one
thread. A step is over when all workers are through. No Ray: pipes carry what little is said.
"""

import multiprocessing
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.base_folder import load_packed
from benchmarks.tutti_loop import TuttiLoop
from benchmarks.workload import BenchmarkTask, Workload


class TuttiWorkers:
    """A `Loop` (comparison.py) over `num_workers` processes; `open` gives them tasks."""

    def __init__(self, folder: Path, num_workers: int, max_positions: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipes: list[Connection] = []
        self._home: dict[str, Connection] = {}
        self.num_positions = self.num_passes = 0
        for _ in range(num_workers):
            pipe, other = context.Pipe()
            arguments = (other, folder, max_positions)
            context.Process(target=_serve, args=arguments, daemon=True).start()
            other.close()  # so that a worker's death ends the wait for it
            self._pipes.append(pipe)

    def open(self, tasks: Sequence[BenchmarkTask], workload: Workload) -> None:
        """Share tasks out, the longest first, each to the worker with the least so far."""
        shares: list[list[BenchmarkTask]] = [[] for _ in self._pipes]
        for task in sorted(tasks, key=lambda task: -sum(task.text_lengths)):
            min(shares, key=lambda s: sum(sum(t.text_lengths) for t in s)).append(task)
        self._home = {
            task.name: pipe
            for pipe, share in zip(self._pipes, shares, strict=True)
            for task in share
        }
        self._ask_all("open", [(share, workload) for share in shares])

    def step(self) -> dict[str, float]:
        """One optimizer step of each task; returns the tasks' losses before it."""
        told = self._ask_all("step", [()] * len(self._pipes))
        self.num_positions = sum(positions for _, positions, _ in told)
        self.num_passes = sum(passes for _, _, passes in told)
        return {name: loss for losses, _, _ in told for name, loss in losses.items()}

    def gradients(self, name: str) -> dict[str, Tensor]:
        """As TuttiLoop's."""
        self._home[name].send(("gradients", (name,)))
        gradients: dict[str, Tensor] = _answer(self._home[name])
        return gradients

    def cpu_clock(self) -> float:
        """Processor seconds of this process and the workers."""
        return time.process_time() + self.worker_seconds()

    def worker_seconds(self) -> float:
        """Processor seconds of the workers."""
        return float(sum(self._ask_all("cpu_clock", [()] * len(self._pipes))))

    def _ask_all(self, command: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        for pipe, each in zip(self._pipes, arguments, strict=True):
            pipe.send((command, each))
        return [_answer(pipe) for pipe in self._pipes]


class _Worker:
    """What a worker process does."""

    def __init__(self, folder: Path, max_positions: int) -> None:
        torch.set_num_threads(1)
        self._model, self._max_positions = load_packed(folder), max_positions
        self._loop: TuttiLoop | None = None

    def open(self, tasks: Sequence[BenchmarkTask], workload: Workload) -> None:
        self._loop = TuttiLoop(self._model, tasks, workload, self._max_positions)

    def step(self) -> tuple[dict[str, float], int, int]:
        assert self._loop is not None
        return self._loop.step(), self._loop.num_positions, self._loop.num_passes

    def gradients(self, name: str) -> dict[str, Tensor]:
        assert self._loop is not None
        return self._loop.gradients(name)

    def cpu_clock(self) -> float:
        return time.process_time()


def _serve(pipe: Connection, folder: Path, max_positions: int) -> None:
    worker = _Worker(folder, max_positions)
    while True:
        try:
            command, arguments = pipe.recv()
        except EOFError:
            return  # nobody asks any more
        try:
            pipe.send(getattr(worker, command)(*arguments))
        except Exception as error:  # told to the one who asked
            pipe.send(error)


def _answer(pipe: Connection) -> Any:
    answer = pipe.recv()
    if isinstance(answer, Exception):
        raise answer
    return answer
