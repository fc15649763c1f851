"""One task's training on one rank: encoder, optimizer, schedule, data order, curve, best step.

Nothing here depends on the tasks beside it: each draws its weights and its data order from its own
seed. V virtual tokens, D token_dim.
"""

import copy
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from encoders.packed.packing import PackedRow
from orchestrator.domain.task_spec import TaskSpec, TrainingSpec
from orchestrator.training.evaluation import Score
from orchestrator.training.prompt_module import build_prompt, virtual_tokens_of
from orchestrator.training.prompt_start import PromptStart
from orchestrator.training.task_data import TaskData, training_rows


class TaskTrainer:
    """Steps one task's encoder; the caller runs the base and hands back gradients.

    `start` is the base's part in where the prompt starts, if the spec asks for it.
    """

    def __init__(
        self, spec: TaskSpec, data: TaskData, token_dim: int, start: PromptStart | None = None
    ) -> None:
        self.spec = spec
        self.data = data
        self.num_virtual_tokens = spec.parsed_template().num_virtual_tokens
        self.prompt = build_prompt(
            spec.encoder, self.num_virtual_tokens, token_dim, spec.training.seed, start
        )
        self.step = 0
        self.curve: dict[str, list[tuple[int, float]]] = {}
        self.best: Score | None = None
        self.best_step = 0
        self._best_state: dict[str, Tensor] = {}
        self._evaluations_since_best = 0
        self._optimizer = _optimizer(self.prompt, spec.training)
        self._schedule = torch.optim.lr_scheduler.LambdaLR(
            self._optimizer, lambda step: _learning_rate_factor(step, spec.training)
        )
        self._data_order = _DataOrder(
            len(data.splits["train"]), spec.training.batch_size, spec.training.seed
        )
        self._dropout_rng = torch.Generator().manual_seed(spec.training.seed).get_state()
        self._tokens: Tensor | None = None

    @property
    def is_done(self) -> bool:
        """All steps are taken, or the best step is out of reach by the spec's patience."""
        stop = self.spec.training.early_stop
        patience_spent = stop is not None and self._evaluations_since_best >= stop.patience
        return self.step >= self.spec.training.steps or patience_spent

    @property
    def is_evaluation_due(self) -> bool:
        every, steps = self.spec.evaluation.every, self.spec.training.steps
        return self.step > 0 and (self.step % every == 0 or self.step >= steps)

    def begin_step(self) -> tuple[list[PackedRow], Tensor]:
        """The step's rows, and its virtual tokens [V, D] as a leaf that gathers their gradient."""
        train = self.data.splits["train"]
        rows = training_rows(self.spec.task, [train[i] for i in self._data_order.next_batch()])
        with self._own_randomness():
            self._tokens = virtual_tokens_of(self.prompt.train())
        return rows, self._tokens.detach().requires_grad_()

    def end_step(self, leaf: Tensor, loss: float) -> None:
        """Carry the leaf's gradient through the encoder and step; ValueError if not finite."""
        assert self._tokens is not None
        assert leaf.grad is not None
        if not math.isfinite(loss) or not bool(torch.isfinite(leaf.grad).all()):
            raise ValueError(
                f"the loss or its gradient is not a finite number at step {self.step + 1} "
                f"(loss {loss:g}); lower training.learning_rate or check the data"
            )
        self._optimizer.zero_grad(set_to_none=True)
        self._tokens.backward(leaf.grad)
        if self.spec.training.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(
                self.prompt.parameters(), self.spec.training.max_grad_norm
            )
        self._optimizer.step()
        self.step += 1
        self._note("loss", loss)
        self._note("learning_rate", float(self._schedule.get_last_lr()[0]))
        self._schedule.step()
        self._tokens = None

    def take_score(self, score: Score) -> None:
        """Note a held-out score; keep the weights if they are the best so far."""
        self._note(f"eval_{score.metric}", score.value)
        if score.metric != "loss":
            self._note("eval_loss", score.loss)
        self._evaluations_since_best += 1
        if math.isfinite(score.loss) and (self.best is None or score.key > self.best.key):
            self.best, self.best_step = score, self.step
            self._best_state = copy.deepcopy(self.prompt.state_dict())
            self._evaluations_since_best = 0

    @torch.no_grad()
    def virtual_tokens(self) -> Tensor:
        """The virtual tokens [V, D] as evaluation and inference use them (no dropout)."""
        return virtual_tokens_of(self.prompt.eval()).detach()

    def restore_best(self) -> None:
        """Put the best step's weights back."""
        if self._best_state:
            self.prompt.load_state_dict(self._best_state)

    def state(self) -> dict[str, Any]:
        """All that `restore` needs to go on to the bit, between two steps."""
        return {
            "step": self.step,
            "encoder": self.prompt.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "data_order": self._data_order.state(),
            "dropout_rng": self._dropout_rng,
            "curve": {
                name: torch.tensor(points, dtype=torch.float64)
                for name, points in self.curve.items()
            },
            "best": self.best.as_tuple() if self.best else None,
            "best_step": self.best_step,
            "best_state": self._best_state,
            "evaluations_since_best": self._evaluations_since_best,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state` of this very task."""
        self.step = state["step"]
        self.prompt.load_state_dict(state["encoder"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        self._data_order.restore(state["data_order"])
        self._dropout_rng = state["dropout_rng"]
        self.curve = {
            name: [(int(step), value) for step, value in points.tolist()]
            for name, points in state["curve"].items()
        }
        self.best = Score(*state["best"]) if state["best"] else None
        self.best_step, self._best_state = state["best_step"], dict(state["best_state"])
        self._evaluations_since_best = state["evaluations_since_best"]

    def _note(self, name: str, value: float) -> None:
        self.curve.setdefault(name, []).append((self.step, value))

    @contextmanager
    def _own_randomness(self) -> Iterator[None]:
        """Dropout draws from this task's generator, not from one shared with its neighbours."""
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self._dropout_rng)
            yield
            self._dropout_rng = torch.get_rng_state()


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


def _optimizer(prompt: torch.nn.Module, training: TrainingSpec) -> torch.optim.Optimizer:
    options: dict[str, Any] = {"lr": training.learning_rate, "weight_decay": training.weight_decay}
    if training.optimizer == "sgd":
        return torch.optim.SGD(prompt.parameters(), **options)
    return torch.optim.AdamW(prompt.parameters(), **options)


def _learning_rate_factor(step: int, training: TrainingSpec) -> float:
    """transformers' schedules: warm-up from 0, then constant, linear to 0 or half a cosine."""
    if step < training.warmup_steps:
        return step / training.warmup_steps
    if training.schedule == "constant":
        return 1.0
    span = max(training.steps - training.warmup_steps, 1)
    progress = min((step - training.warmup_steps) / span, 1.0)
    if training.schedule == "linear":
        return 1.0 - progress
    return 0.5 * (1.0 + math.cos(math.pi * progress))
