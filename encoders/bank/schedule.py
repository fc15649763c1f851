"""How a learning rate runs over the steps: transformers' schedules, functions of the step alone."""

import math
from dataclasses import dataclass
from typing import Literal

from encoders.errors import ConfigError


@dataclass(frozen=True)
class Schedule:
    """Warm-up from 0 over `warmup_steps`; then constant or, over the rest of `num_steps`, to 0 by a
    line or half a cosine. Source: transformers' optimization.py. Raises ConfigError."""

    kind: Literal["constant", "linear", "cosine"] = "constant"
    num_steps: int = 0
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        if self.kind not in ("constant", "linear", "cosine"):
            raise ConfigError(f"there is no schedule {self.kind!r}: constant, linear or cosine")
        if self.warmup_steps < 0 or self.num_steps < 0:
            raise ConfigError("a schedule's steps are 0 or more")

    def factor(self, step: int) -> float:
        """What the learning rate is multiplied by for the step after `step` others."""
        if step < self.warmup_steps:
            return step / self.warmup_steps
        if self.kind == "constant":
            return 1.0
        span = max(self.num_steps - self.warmup_steps, 1)
        progress = min((step - self.warmup_steps) / span, 1.0)
        if self.kind == "linear":
            return 1.0 - progress
        return 0.5 * (1.0 + math.cos(math.pi * progress))


CONSTANT = Schedule()
