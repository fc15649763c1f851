"""One task's training on one rank: its slot in the encoder bank, data order, curve, best step.

Nothing here depends on the tasks beside it: each draws its weights and its data order from its own
seed. V virtual tokens, D token_dim.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from encoders.bank.encoder_bank import EncoderBank
from encoders.bank.encoder_step import virtual_tokens
from encoders.bank.schedule import Schedule
from encoders.bank.slot import SlotOptions
from encoders.packed.packing import PackedRow
from orchestrator.domain.task_spec import TaskSpec, TrainingSpec
from orchestrator.training.evaluation import Score
from orchestrator.training.prompt_module import build_prompt
from orchestrator.training.prompt_start import PromptStart
from orchestrator.training.task_data import TaskData, training_rows


class TaskTrainer:
    """Holds one task's slot; the caller runs the base and steps the bank (encoder_step.py).

    `start` is the base's part in where the prompt starts, if the spec asks for it. `bank` is shared
    with the tasks beside it. `release` gives the slot back. `key` tells it from all trainers of its
    rank (default: the task's name, which trials of a sweep have in common).
    """

    def __init__(
        self,
        spec: TaskSpec,
        data: TaskData,
        token_dim: int,
        start: PromptStart | None = None,
        bank: EncoderBank | None = None,
        key: str | None = None,
    ) -> None:
        self.spec = spec
        self.key = spec.task if key is None else key
        self.data = data
        self.num_virtual_tokens = spec.parsed_template().num_virtual_tokens
        self._bank = EncoderBank() if bank is None else bank
        prompt = build_prompt(
            spec.encoder, self.num_virtual_tokens, token_dim, spec.training.seed, start
        )
        self.slot = self._bank.admit(prompt, slot_options(spec.training))
        self.curve: dict[str, list[tuple[int, float]]] = {}
        self.best: Score | None = None
        self.best_step = 0
        self._best_weights: dict[str, Tensor] = {}
        self._evaluations_since_best = 0
        self._data_order = _DataOrder(
            len(data.splits["train"]), spec.training.batch_size, spec.training.seed
        )

    @property
    def step(self) -> int:
        """Steps taken."""
        return self.slot.num_steps

    @property
    def is_done(self) -> bool:
        """All steps are taken, or the spec's patience is spent, or its target reached."""
        stop = self.spec.training.early_stop
        if stop is None or self.step >= self.spec.training.steps:
            return self.step >= self.spec.training.steps
        is_spent = stop.patience is not None and self._evaluations_since_best >= stop.patience
        best = self.best
        return is_spent or (
            stop.target is not None and best is not None and best.reaches(stop.target)
        )

    @property
    def is_evaluation_due(self) -> bool:
        every, steps = self.spec.evaluation.every, self.spec.training.steps
        return self.step > 0 and (self.step % every == 0 or self.step >= steps)

    def next_rows(self) -> list[PackedRow]:
        """The rows of the next step."""
        train = self.data.splits["train"]
        return training_rows(self.key, [train[i] for i in self._data_order.next_batch()])

    def check_step(self, leaf: Tensor, loss: float) -> None:
        """Raise ValueError, before the step is taken, if it cannot be."""
        assert leaf.grad is not None
        if not math.isfinite(loss) or not bool(torch.isfinite(leaf.grad).all()):
            raise ValueError(
                f"the loss or its gradient is not a finite number at step {self.step + 1} "
                f"(loss {loss:g}); lower training.learning_rate or check the data"
            )

    def end_step(self, loss: float) -> None:
        """Note the step that the slot has just taken."""
        self._note("loss", loss)
        self._note("learning_rate", self.slot.options.learning_rate_after(self.step - 1))

    def take_score(self, score: Score) -> None:
        """Note a held-out score; keep the weights if they are the best so far."""
        self._note(f"eval_{score.metric}", score.value)
        if score.metric != "loss":
            self._note("eval_loss", score.loss)
        self._evaluations_since_best += 1
        if math.isfinite(score.loss) and (self.best is None or score.key > self.best.key):
            self.best, self.best_step = score, self.step
            self._best_weights = self.slot.weights()
            self._evaluations_since_best = 0

    def virtual_tokens(self) -> Tensor:
        """The virtual tokens [V, D] as evaluation and inference use them (no dropout)."""
        return virtual_tokens([self.slot])[0]

    def restore_best(self) -> None:
        """Put the best step's weights back."""
        if self._best_weights:
            self.slot.load_weights(self._best_weights)

    def release(self) -> None:
        """Give the slot back: the training is over."""
        self._bank.release(self.slot)

    def state(self) -> dict[str, Any]:
        """All that `restore` needs to go on to the bit, between two steps."""
        return {
            "slot": self.slot.state(),
            "data_order": self._data_order.state(),
            "curve": {
                name: torch.tensor(points, dtype=torch.float64)
                for name, points in self.curve.items()
            },
            "best": self.best.as_tuple() if self.best else None,
            "best_step": self.best_step,
            "best_weights": self._best_weights,
            "evaluations_since_best": self._evaluations_since_best,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state` of this very task."""
        self.slot.restore(state["slot"])
        self._data_order.restore(state["data_order"])
        self.curve = {
            name: [(int(step), value) for step, value in points.tolist()]
            for name, points in state["curve"].items()
        }
        self.best = Score(*state["best"]) if state["best"] else None
        self.best_step, self._best_weights = state["best_step"], dict(state["best_weights"])
        self._evaluations_since_best = state["evaluations_since_best"]

    def _note(self, name: str, value: float) -> None:
        self.curve.setdefault(name, []).append((self.step, value))


class _DataOrder:
    """Row indices, shuffled for each epoch from the task's seed; a last short batch is kept."""

    def __init__(self, num_rows: int, batch_size: int, seed: int) -> None:
        self._num_rows, self._batch_size = num_rows, batch_size
        self._generator = torch.Generator().manual_seed(seed)
        self._left: list[int] = []

    def next_batch(self) -> list[int]:
        if not self._left:
            self._left = torch.randperm(self._num_rows, generator=self._generator).tolist()
        batch, self._left = self._left[: self._batch_size], self._left[self._batch_size :]
        return batch

    def state(self) -> dict[str, Any]:
        left = torch.tensor(self._left, dtype=torch.long)
        return {"generator": self._generator.get_state(), "left": left}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._generator.set_state(state["generator"])
        self._left = state["left"].tolist()


def slot_options(training: TrainingSpec) -> SlotOptions:
    """How a spec's encoder learns."""
    return SlotOptions(
        learning_rate=training.learning_rate,
        optimizer=training.optimizer,
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        schedule=Schedule(training.schedule, training.steps, training.warmup_steps),
        seed=training.seed,
    )
