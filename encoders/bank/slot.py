"""One encoder's place in a bank, and how it learns there."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from encoders.bank.block import Block, Views
from encoders.bank.schedule import CONSTANT, Schedule
from encoders.bank.stacked_encoder import EncoderShape
from encoders.bank.stacked_optimizer import (
    SGD,
    Adafactor,
    AdamW,
    OptimizerKind,
    StackedOptimizer,
)
from encoders.errors import ConfigError, EncoderError


@dataclass(frozen=True)
class SlotOptions:
    """How one encoder learns. Slots of one optimizer, `betas`, `eps` and `momentum` step together;
    the rest is each slot's own. `seed` is of its dropout. Raises ConfigError."""

    learning_rate: float
    optimizer: OptimizerKind = "adamw"
    weight_decay: float = 0.0
    max_grad_norm: float | None = None
    schedule: Schedule = CONSTANT
    seed: int = 0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    momentum: float = 0.0

    def __post_init__(self) -> None:
        if self.optimizer not in ("adamw", "sgd", "adafactor"):
            raise ConfigError(f"there is no optimizer {self.optimizer!r}: adamw, sgd or adafactor")
        if not (self.learning_rate >= 0 and self.weight_decay >= 0):
            raise ConfigError("learning_rate and weight_decay are 0 or more")

    def learning_rate_after(self, num_steps: int) -> float:
        """The learning rate of the step that follows `num_steps` others."""
        return self.learning_rate * self.schedule.factor(num_steps)

    def stacked(self, shape: EncoderShape) -> StackedOptimizer:
        """The optimizer of all slots like this one."""
        if self.optimizer == "sgd":
            return SGD(shape.parameters, self.momentum)
        if self.optimizer == "adafactor":
            return Adafactor(shape.parameters)
        return AdamW(shape.parameters, self.betas, self.eps)


class Slot:
    """One encoder's place in a bank. `is_frozen` keeps its weights as they are; `num_steps` counts
    the steps it took."""

    def __init__(self, block: Block, row: int, options: SlotOptions) -> None:
        self.block, self.row, self.options = block, row, options
        self.num_steps = 0
        self.is_frozen = False
        self.generator = torch.Generator().manual_seed(options.seed)

    def weights(self) -> dict[str, Tensor]:
        """A copy of its encoder's state dict: a module of its shape can load it."""
        return {name: tensor.clone() for name, tensor in self.block.tensors(self.row).items()}

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Replace its weights alone. Raises EncoderError where they are another encoder's."""
        _copy_all(self.block.tensors(self.row), weights, "weights")

    def reset(self, module: nn.Module) -> None:
        """Begin again with a module of the same shape: no steps taken, no optimizer state."""
        if EncoderShape.of(module) != self.block.shape:
            raise EncoderError("the module has another shape than the slot it is to stand in")
        self.block.load(self.row, module.state_dict())
        self.num_steps = 0
        self.generator.manual_seed(self.options.seed)

    def state(self) -> dict[str, Any]:
        """All that `restore` needs to go on to the bit, between two steps."""
        return {
            "weights": self.weights(),
            "optimizer": {k: v.clone() for k, v in self.block.optimizer_state(self.row).items()},
            "num_steps": self.num_steps,
            "is_frozen": self.is_frozen,
            "dropout_rng": self.generator.get_state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state` of this very encoder. Raises EncoderError or KeyError for others."""
        self.load_weights(state["weights"])
        _copy_all(self.block.optimizer_state(self.row), state["optimizer"], "optimizer state")
        self.num_steps, self.is_frozen = int(state["num_steps"]), bool(state["is_frozen"])
        self.generator.set_state(state["dropout_rng"])


def _copy_all(into: Views, given: Mapping[str, Tensor], what: str) -> None:
    if into.keys() != given.keys() or any(into[key].shape != given[key].shape for key in into):
        raise EncoderError(
            f"the {what} of another encoder: {sorted(given)}, expected {sorted(into)}"
        )
    for name, tensor in into.items():
        tensor.copy_(given[name])
