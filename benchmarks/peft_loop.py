"""PEFT's side (opponent B): one process, one base, an adapter per task, tasks in turn."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.peft_loss import PeftVariant, Row
from benchmarks.workload import BenchmarkTask, Workload


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
        self._variant, self._num_virtual_tokens = variant, workload.num_virtual_tokens
        self._rows = {task.name: _rows(task) for task in tasks}
        self._encoders = {task.name: self._model.prompt_encoder[task.name] for task in tasks}
        for name, encoder in self._encoders.items():
            encoder.load_state_dict(weights[name])
        self._optimizers = {
            task.name: torch.optim.AdamW(
                self._encoders[task.name].parameters(), lr=task.learning_rate, weight_decay=0.0
            )
            for task in tasks
        }
        self.num_passes = len(tasks)
        self.num_positions = sum(
            variant.num_positions(rows, workload.num_virtual_tokens) for rows in self._rows.values()
        )

    def step(self) -> dict[str, float]:
        """One optimizer step of each task; returns the tasks' losses before it."""
        return {name: self._step(name) for name in self._rows}

    def _step(self, name: str) -> float:
        self._model.set_adapter(name)
        optimizer = self._optimizers[name]
        loss = self._variant.loss(self._model, self._rows[name], self._num_virtual_tokens)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    def gradients(self, name: str) -> dict[str, Tensor]:
        """The last step's gradient of every encoder parameter of a task."""
        return {
            key: parameter.grad.clone()
            for key, parameter in self._encoders[name].named_parameters()
            if parameter.grad is not None
        }


def _rows(task: BenchmarkTask) -> list[Row]:
    """The task's rows without virtual tokens, which PEFT puts first itself."""
    return [
        (tuple(token for token in example.context if token >= 0), example.answer)
        for example in task.examples
    ]


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
