"""Tutti's side: one training step of many tasks, packed.

The step of `orchestrator.training.rank_loop`, made of the same public parts, without DeepSpeed,
events and evaluations.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from benchmarks.workload import BenchmarkTask, Workload
from encoders.packed.context_cache import CacheBudget, ContextCache
from encoders.packed.packed_model import PackedModel
from encoders.packed.packing import PackedBatch, PackedRow, pack, split_by_budget
from encoders.packed.scoring import label_log_probs
from orchestrator.domain.task_spec import DataSpec, EncoderSpec, TaskSpec, TrainingSpec
from orchestrator.training.task_data import TaskData
from orchestrator.training.task_trainer import TaskTrainer


class TuttiLoop:
    """Trains all tasks at once; a forward pass takes at most `max_positions` of unshared rows.

    With a `cache` the texts before prompts are computed in the step that first needs them.
    """

    def __init__(
        self,
        model: PackedModel,
        tasks: Sequence[BenchmarkTask],
        workload: Workload,
        max_positions: int,
        cache: ContextCache | None = None,
    ) -> None:
        self._model = model
        self._cache = ContextCache(model, CacheBudget(0)) if cache is None else cache
        self._max_positions = max_positions
        self._trainers = {task.name: _trainer(task, workload, model.token_dim) for task in tasks}
        self.num_positions = 0
        self.num_passes = 0

    def step(self) -> dict[str, float]:
        """One optimizer step of each task; returns the tasks' losses before it."""
        begun = {name: trainer.begin_step() for name, trainer in self._trainers.items()}
        rows = [row for task_rows, _ in begun.values() for row in task_rows]
        leaves = {name: leaf for name, (_, leaf) in begun.items()}
        num_labels = {
            name: sum(len(row.answers[0]) for row in task_rows)
            for name, (task_rows, _) in begun.items()
        }
        losses = dict.fromkeys(begun, 0.0)
        self.num_positions = self.num_passes = 0
        for texts in self._cache.missing(rows, self._max_positions):
            self._cache.compute(texts)
        for run in split_by_budget(rows, self._max_positions, self._cache):
            self._backward(run, leaves, num_labels, losses)
        for name, trainer in self._trainers.items():
            trainer.end_step(leaves[name], losses[name])
        return losses

    def _backward(
        self,
        rows: tuple[PackedRow, ...],
        leaves: Mapping[str, Tensor],
        num_labels: Mapping[str, int],
        losses: dict[str, float],
    ) -> None:
        batch = pack(rows, {name: leaf.shape[0] for name, leaf in leaves.items()}, self._cache)
        logits = self._model.logits(batch, leaves, self._cache.layers(batch))
        per_label = -label_log_probs(logits, batch)
        names = [row.prompt or "" for row in rows]
        weight = torch.tensor([1.0 / num_labels[name] for name in names])
        weighted = per_label * weight[batch.answer_row[batch.label_answer]]
        weighted.sum().backward()
        self._note(batch)
        rows_of_labels = batch.answer_row[batch.label_answer].tolist()
        for row, loss in zip(rows_of_labels, weighted.tolist(), strict=True):
            losses[names[row]] += loss

    def _note(self, batch: PackedBatch) -> None:
        self.num_positions += batch.num_positions
        self.num_passes += 1

    def weights(self, name: str) -> dict[str, Tensor]:
        """A task's encoder weights, under PEFT's names."""
        return dict(self._trainers[name].prompt.state_dict())

    def gradients(self, name: str) -> dict[str, Tensor]:
        """The last step's gradient of every encoder parameter of a task."""
        return {
            key: parameter.grad.clone()
            for key, parameter in self._trainers[name].prompt.named_parameters()
            if parameter.grad is not None
        }


def _trainer(task: BenchmarkTask, workload: Workload, token_dim: int) -> TaskTrainer:
    spec = TaskSpec(
        task=task.name,
        base="benchmark",
        template=f"{{prompt:{workload.num_virtual_tokens}}}{{text}} {{answer}}",
        answer="answer",
        encoder=EncoderSpec(type="mlp", hidden_size=workload.hidden_size),
        data=DataSpec(train="train.jsonl", eval="eval.jsonl"),
        training=TrainingSpec(
            batch_size=workload.batch_size,
            learning_rate=workload.learning_rate,
            schedule="constant",
            max_grad_norm=None,
            seed=task.seed,
        ),
    )
    data = TaskData({"train": task.examples, "eval": ()}, (), (), ends_answer=False)
    return TaskTrainer(spec, data, token_dim)
