"""A sweep: the values that its trials train with, and the rungs at which some of them stop.

Trials follow from the spec alone. Which fields there are, and what they take, is for task_spec.py
to check.
"""

import math
import random
from collections.abc import Collection, Iterator, Mapping
from itertools import product
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, JsonValue, Tag, model_validator

from orchestrator.domain.spec_part import SpecPart

MAX_TRIALS = 256


class Range(SpecPart):
    """Numbers from `low` to `high`, spread evenly, or (`log`) evenly in their logarithm."""

    low: float
    high: float
    log: bool = False

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"low ({self.low:g}) must be below high ({self.high:g})")
        if self.log and self.low <= 0:
            raise ValueError(f"a range in the logarithm starts above 0, not at {self.low:g}")
        return self

    def at(self, share: float, is_whole: bool) -> float:
        """The number at a share, 0 to below 1, of the way from low to high."""
        low, high = (math.ceil(self.low), self.high + 1) if is_whole else (self.low, self.high)
        value = low * (high / low) ** share if self.log else low + share * (high - low)
        return math.floor(min(value, self.high)) if is_whole else min(value, self.high)


def _kind(value: object) -> str:
    return "range" if isinstance(value, Mapping | Range) else "list"


Values = Annotated[
    Annotated[tuple[JsonValue, ...], Tag("list")] | Annotated[Range, Tag("range")],
    Discriminator(_kind),
]


class HalvingSpec(SpecPart):
    """Successive halving (Jamieson and Talwalkar 2016; Li et al. 2020, ASHA): after first,
    first * factor, first * factor^2, ... steps (the rungs), of the trials that came so far the best
    1 / factor go on."""

    factor: int = Field(2, ge=2, le=256)
    first: int = Field(ge=1)

    def rungs(self, num_steps: int) -> list[int]:
        """The rungs below `num_steps`."""
        rungs = [self.first]
        while rungs[-1] < num_steps:
            rungs.append(rungs[-1] * self.factor)
        return rungs[:-1]


class SweepSpec(SpecPart):
    """Trials of one task over values of its encoder's and training's fields.

    grid: every combination of the lists in `over`. random: `trials` draws from lists and ranges.
    `concurrent` is how many trials train at a time, the others wait (default: all train).
    """

    search: Literal["grid", "random"] = "grid"
    over: Mapping[str, Values] = Field(min_length=1)
    trials: int | None = Field(None, ge=1, le=MAX_TRIALS)
    seed: int = Field(0, ge=0, lt=2**32)
    concurrent: int | None = Field(None, ge=1)
    halving: HalvingSpec | None = None

    @model_validator(mode="after")
    def _check_search(self) -> Self:
        for path, values in self.over.items():
            if not values:
                raise ValueError(f"give at least one value for {path}")
        if self.search == "random":
            if self.trials is None:
                raise ValueError(f"a random search needs `trials`, 1 to {MAX_TRIALS}")
            return self
        if self.trials is not None:
            raise ValueError("a grid has as many trials as combinations; remove `trials`")
        ranges = [path for path, values in self.over.items() if isinstance(values, Range)]
        if ranges:
            raise ValueError(f"a grid needs a list of values for {ranges[0]}, not a range")
        num_trials = math.prod(map(len, self._lists()))
        if num_trials > MAX_TRIALS:
            raise ValueError(
                f"the grid has {num_trials} trials, at most {MAX_TRIALS} are allowed; give fewer "
                "values, or use `search: random` with `trials`"
            )
        return self

    def draw(self, whole: Collection[str]) -> Iterator[dict[str, Any]]:
        """Each trial's values by field; the fields in `whole` take whole numbers."""
        paths = sorted(self.over)  # a stored spec may come back in another order
        if self.search == "grid":
            for values in product(*self._lists()):
                yield dict(zip(paths, values, strict=True))
            return
        generator = random.Random(self.seed)
        for _ in range(self.trials or 0):
            shares = {path: generator.random() for path in paths}
            yield {p: _draw(self.over[p], share, p in whole) for p, share in shares.items()}

    def _lists(self) -> list[tuple[Any, ...]]:
        return [values for _, values in sorted(self.over.items()) if isinstance(values, tuple)]


def _draw(values: tuple[Any, ...] | Range, share: float, is_whole: bool) -> Any:
    if isinstance(values, Range):
        return values.at(share, is_whole)
    return values[int(share * len(values))]
