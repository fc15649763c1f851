"""Trains real tasks with PEFT alone, as its own process: `python -m benchmarks.peft_script ORDER`.

Opponent B is one such process for all tasks, opponent A one for each. The order is a JSON file
(see PeftOrder); what happened is printed as JSON on the last line. Imports nothing of Tutti.
"""

import json
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PromptEncoderConfig, TaskType, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from benchmarks.peft_loss import VARIANTS
from benchmarks.peft_ranking import ranking_accuracy


@dataclass(frozen=True)
class PeftTask:
    """A task as token ids, with the prompt first. The encoder's first weights are in a file.

    `rows` are the training rows of each step; `eval_rows` hold a text and its answer's place among
    `candidates`. The learning rate falls linearly to 0 over `num_steps`; `rows` may end before.
    """

    name: str
    encoder: Mapping[str, Any]
    weights: str
    rows: Sequence[Sequence[tuple[Sequence[int], Sequence[int]]]]
    eval_rows: Sequence[tuple[Sequence[int], int]]
    candidates: Sequence[Sequence[int]]
    num_steps: int
    learning_rate: float
    max_grad_norm: float
    every: int
    target: float


@dataclass(frozen=True)
class PeftOrder:
    """What a process is to do: `variant` is the place of its loop in peft_loss.VARIANTS."""

    base: str
    threads: int
    variant: int
    tasks: Sequence[PeftTask]

    @classmethod
    def read(cls, path: Path) -> "PeftOrder":
        facts = json.loads(path.read_text(encoding="utf-8"))
        return cls(**facts | {"tasks": [PeftTask(**task) for task in facts["tasks"]]})

    def write(self, path: Path) -> Path:
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")
        return path


def main(order: PeftOrder) -> dict[str, Any]:
    """Load the base, then train the tasks in turn, each until its target or its last step."""
    torch.set_num_threads(order.threads)
    base = AutoModelForCausalLM.from_pretrained(
        order.base, dtype=torch.float32, local_files_only=True
    )
    model = open_peft(base, order.tasks)
    started = time.perf_counter()
    tasks = {task.name: train(model, task, order.variant) for task in order.tasks}
    return {"train_s": time.perf_counter() - started, "tasks": tasks}


def open_peft(base: Any, tasks: Sequence[PeftTask]) -> Any:
    """A PeftModel with an adapter per task, at the weights of their files."""
    configs = {
        task.name: PromptEncoderConfig(task_type=TaskType.CAUSAL_LM, **task.encoder)
        for task in tasks
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(base, configs[tasks[0].name], adapter_name=tasks[0].name)
        for task in tasks[1:]:
            model.add_adapter(task.name, configs[task.name])
    for task in tasks:
        model.prompt_encoder[task.name].load_state_dict(load_file(task.weights))
    return model


def train(model: Any, task: PeftTask, variant: int) -> dict[str, Any]:
    """Train one task; returns its losses, accuracies by step, and seconds of both kinds of work."""
    model.set_adapter(task.name)
    encoder, num_virtual = model.prompt_encoder[task.name], task.encoder["num_virtual_tokens"]
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=task.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / task.num_steps)
    losses: list[float] = []
    accuracies: dict[int, float] = {}
    step_s, evaluation_s = [], []

    def take_step(rows: Any) -> None:
        loss = VARIANTS[variant].loss(model, rows, num_virtual)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(encoder.parameters(), task.max_grad_norm)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))

    def evaluate(step: int) -> None:
        accuracies[step] = ranking_accuracy(model, task.eval_rows, task.candidates, num_virtual)

    for step, rows in enumerate(task.rows, 1):
        step_s.append(_timed(take_step, rows))
        if step % task.every == 0 or step == len(task.rows):
            evaluation_s.append(_timed(evaluate, step))
            if accuracies[step] >= task.target:
                break
    return {
        "losses": losses, "accuracies": accuracies, "step_s": step_s, "evaluation_s": evaluation_s,
    }  # fmt: skip


def _timed(work: Callable[[Any], None], argument: Any) -> float:
    started = time.perf_counter()
    work(argument)
    return time.perf_counter() - started


if __name__ == "__main__":
    print(json.dumps(main(PeftOrder.read(Path(sys.argv[1])))))
