"""The work both sides are given: tasks of random rows with log-normal text lengths.

A task's rows depend on the seed and on its own number, never on how many tasks stand beside it.
"""

import math
from dataclasses import dataclass, replace

import torch

from orchestrator.training.task_data import Example


@dataclass(frozen=True)
class Workload:
    """The shape of every task: B rows a step, an MLP encoder, the prompt before the text or (not in
    PEFT) after it."""

    num_virtual_tokens: int = 20
    batch_size: int = 8
    mean_text_length: float = 36.0
    #: Standard deviation of the logarithm of a text's length; 0 makes all texts equally long.
    length_spread: float = 0.6
    answer_length: int = 2
    hidden_size: int = 128
    learning_rate: float = 1e-2
    seed: int = 0
    prompt_last: bool = False

    @property
    def virtual_ids(self) -> tuple[int, ...]:
        """The virtual tokens as templates write them: negative numbers."""
        return tuple(-(i + 1) for i in range(self.num_virtual_tokens))


@dataclass(frozen=True)
class BenchmarkTask:
    """One task: the seed of its encoder's weights, and the rows of each of its steps."""

    name: str
    seed: int
    learning_rate: float
    examples: tuple[Example, ...]

    @property
    def text_lengths(self) -> list[int]:
        return [sum(token >= 0 for token in example.context) for example in self.examples]


def make_tasks(workload: Workload, num_tasks: int, vocab_size: int) -> list[BenchmarkTask]:
    """The first `num_tasks` tasks of a workload."""
    return [_make_task(workload, number, vocab_size) for number in range(num_tasks)]


def make_trials(workload: Workload, num_trials: int, vocab_size: int) -> list[BenchmarkTask]:
    """The trials of a sweep: the rows of the first task, each with a seed and learning rate of its
    own (a tenth of the workload's to all of it, in equal ratios)."""
    task = _make_task(workload, 0, vocab_size)
    return [
        replace(
            task,
            name=f"trial-{number}",
            seed=task.seed + number,
            learning_rate=workload.learning_rate * 10 ** (-number / max(1, num_trials - 1)),
        )
        for number in range(num_trials)
    ]


def _make_task(workload: Workload, number: int, vocab_size: int) -> BenchmarkTask:
    seed = workload.seed * 1_000_003 + number
    random = torch.Generator().manual_seed(seed)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(vocab_size, (count,), generator=random).tolist())

    def context(text: tuple[int, ...]) -> tuple[int, ...]:
        virtual = workload.virtual_ids
        return text + virtual if workload.prompt_last else virtual + text

    examples = [
        Example(context(tokens(length)), tokens(workload.answer_length), 0)
        for length in _text_lengths(workload, random)
    ]
    return BenchmarkTask(f"task-{number}", seed, workload.learning_rate, tuple(examples))


def _text_lengths(workload: Workload, random: torch.Generator) -> list[int]:
    """Log-normal lengths whose expectation is the workload's mean."""
    spread = workload.length_spread
    mean_of_log = math.log(workload.mean_text_length) - spread**2 / 2
    draws = torch.randn(workload.batch_size, generator=random)
    return [max(1, round(math.exp(mean_of_log + spread * z))) for z in draws.tolist()]
