"""PEFT's side (opponent B): one process, one base, an adapter per task, one task after the other.

Rows are padded on the right to the longest of their batch. Left padding, which would put all
answers in the same last columns, is not exact here: PEFT ignores position ids, so the padding
would stand between the prompt and the text. A tensor `logits_to_keep` does better anyway.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.workload import BenchmarkTask, Workload
from orchestrator.training.task_data import Example

IGNORED = -100


@dataclass(frozen=True)
class PeftVariant:
    """A way to write the loop. All are exact; the fastest is the opponent.

    keeps_answers: logits at answer positions alone (`logits_to_keep` [B, A]), no `labels`.
    passes_mask: the attention mask is passed, as collators do. A causal model with padding on the
    right does not need it, and attention without a mask has a faster kernel.
    """

    name: str
    keeps_answers: bool
    passes_mask: bool


VARIANTS = (
    PeftVariant("labels, attention mask, all logits", False, True),
    PeftVariant("answer logits only, attention mask", True, True),
    PeftVariant("answer logits only, no attention mask", True, False),
)


class PeftLoop:
    """Trains the tasks in turn on one `PeftModel`."""

    def __init__(
        self,
        base: Any,
        tasks: Sequence[BenchmarkTask],
        workload: Workload,
        weights: Mapping[str, Mapping[str, Tensor]],
        variant: PeftVariant,
    ) -> None:
        self._model = _peft_model(base, tasks, workload)
        self._tasks, self._workload, self._variant = tasks, workload, variant
        self._encoders = {task.name: self._model.prompt_encoder[task.name] for task in tasks}
        for name, encoder in self._encoders.items():
            encoder.load_state_dict(weights[name])
        self._optimizers = {
            name: torch.optim.AdamW(
                encoder.parameters(), lr=workload.learning_rate, weight_decay=0.0
            )
            for name, encoder in self._encoders.items()
        }
        self.num_positions = 0
        self.num_passes = len(tasks)

    def step(self) -> dict[str, float]:
        """One optimizer step of each task; returns the tasks' losses before it."""
        self.num_positions = 0
        return {task.name: self._step(task) for task in self._tasks}

    def _step(self, task: BenchmarkTask) -> float:
        self._model.set_adapter(task.name)
        optimizer = self._optimizers[task.name]
        loss = self._answer_loss(task) if self._variant.keeps_answers else self._label_loss(task)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    def _label_loss(self, task: BenchmarkTask) -> Tensor:
        """The usual loop: whole rows, and labels that are ignored outside the answer."""
        texts = [_text(example) for example in task.examples]
        rows = [(*text, *e.answer) for text, e in zip(texts, task.examples, strict=True)]
        labels = [
            [*[IGNORED] * len(text), *example.answer]
            for text, example in zip(texts, task.examples, strict=True)
        ]
        output = self._forward(rows, labels=_padded(labels, IGNORED))
        loss: Tensor = output.loss
        return loss

    def _answer_loss(self, task: BenchmarkTask) -> Tensor:
        """The LM head at answer positions alone; the answer's last token is no input."""
        rows = [(*_text(example), *example.answer[:-1]) for example in task.examples]
        first = torch.tensor([len(example.context) - 1 for example in task.examples])
        kept = first[:, None] + torch.arange(self._workload.answer_length)
        logits = self._forward(rows, logits_to_keep=kept).logits
        labels = torch.tensor([example.answer for example in task.examples])
        return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())

    def _forward(self, rows: Sequence[Sequence[int]], **options: Tensor) -> Any:
        ids = _padded(rows, 0)
        self.num_positions += ids.numel() + len(rows) * self._workload.num_virtual_tokens
        if self._variant.passes_mask:
            options["attention_mask"] = _padded([[1] * len(row) for row in rows], 0)
        return self._model(input_ids=ids, use_cache=False, **options)

    def gradients(self, name: str) -> dict[str, Tensor]:
        """The last step's gradient of every encoder parameter of a task."""
        return {
            key: parameter.grad.clone()
            for key, parameter in self._encoders[name].named_parameters()
            if parameter.grad is not None
        }


def _peft_model(base: Any, tasks: Sequence[BenchmarkTask], workload: Workload) -> Any:
    from peft import PromptEncoderConfig, TaskType, get_peft_model

    def config() -> PromptEncoderConfig:
        return PromptEncoderConfig(
            task_type=TaskType.CAUSAL_LM,
            num_virtual_tokens=workload.num_virtual_tokens,
            encoder_reparameterization_type="MLP",
            encoder_hidden_size=workload.hidden_size,
        )

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(base, config(), adapter_name=tasks[0].name)
        for task in tasks[1:]:
            model.add_adapter(task.name, config())
    return model


def _text(example: Example) -> tuple[int, ...]:
    """The context without its virtual tokens, which PEFT puts first."""
    return tuple(token for token in example.context if token >= 0)


def _padded(rows: Sequence[Sequence[int]], filler: int) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([[*row, *[filler] * (width - len(row))] for row in rows])
