"""The real tasks of examples/tasks: their specs, and their training and eval rows as token ids."""

import re
from collections.abc import Iterator
from pathlib import Path

import torch

from encoders.text.tokenization import TextTokenizer
from orchestrator.domain.dataset import read_dataset
from orchestrator.domain.errors import InvalidInput
from orchestrator.domain.spec_file import read_spec
from orchestrator.domain.task_spec import TaskSpec, TrainingSpec
from orchestrator.training.task_data import TaskData, encode_task

TASKS = Path(__file__).parents[1] / "examples" / "tasks"
NAMES = tuple(sorted(path.stem for path in TASKS.glob("*.yaml")))
_PROMPT = re.compile(r"\{prompt:\d+\}")


def read_example(name: str) -> TaskSpec:
    if name not in NAMES:
        raise InvalidInput(
            f"there is no task {name!r} in {TASKS}", f"Choose of {', '.join(NAMES)}."
        )
    return read_spec(TASKS / f"{name}.yaml")


def read_task_data(spec: TaskSpec, tokenizer: TextTokenizer, max_length: int) -> TaskData:
    """The task's training and eval rows; test rows and a manual prompt are of no use here."""
    fields = sorted({*spec.parsed_template().fields, spec.answer})
    datasets = {
        split: read_dataset(TASKS / file, fields)
        for split, file in spec.data.files().items()
        if split != "test"
    }
    plain = spec.evaluation.model_copy(update={"manual_prompt": None})
    spec = spec.model_copy(update={"evaluation": plain})
    return encode_task(spec, datasets, tokenizer, max_length)


def with_prompt_first(spec: TaskSpec) -> TaskSpec:
    """The same task as PEFT can train it: all of its virtual tokens before the text."""
    count = spec.parsed_template().num_virtual_tokens
    template = f"{{prompt:{count}}}{_PROMPT.sub('', spec.template)}"
    return spec.model_copy(update={"template": template})


def gate_accuracy(spec: TaskSpec) -> float:
    """The held-out accuracy that the example's gate asks for."""
    gate = re.search(r"accuracy >= (\d*\.?\d+)", (spec.promote and spec.promote.when) or "")
    if gate is None:
        raise InvalidInput(f"the gate of {spec.task} names no accuracy", "Give --target.")
    return float(gate[1])


def batches(num_rows: int, training: TrainingSpec) -> Iterator[list[int]]:
    """The rows of each step, as TaskTrainer draws them: epochs shuffled from the seed."""
    generator = torch.Generator().manual_seed(training.seed)
    left: list[int] = []
    for _ in range(training.steps):
        left = left or torch.randperm(num_rows, generator=generator).tolist()
        batch, left = left[: training.batch_size], left[training.batch_size :]
        yield batch
