"""Keeps ranks that hold bases together (ZeRO-3) in step: they make every forward pass together.

Before each pass all ranks say which base they want to run, and the last base that anyone wants has
its turn: who wants it makes its own pass, all others an idle one of it. A rank that has nothing to
run goes on making the others' passes, until nobody has any. Passes of a base all run the same
modules (see PackedModel), so ranks need not agree on what a pass is for.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.distributed as dist

from encoders.packed.packed_model import PackedModel
from encoders.packed.packing import PackedRow, pack

_NOTHING = 0


class PassTurns:
    """The turns of this rank; `models` are those of all ranks, in the same order. `greatest` gives
    all ranks the greatest of the numbers that they call it with, each at once with the others.
    `num_passes` counts this rank's, idle ones as well."""

    def __init__(
        self, models: Sequence[PackedModel], greatest: Callable[[int], int] | None = None
    ) -> None:
        self._models, self.num_passes = models, 0
        self._agree = greatest or greatest_of_group
        self._idle = pack([PackedRow(None, (0,))], {})
        self._is_idling = False
        for number, model in enumerate(models, start=1):
            model.before_pass = partial(self._await, number)

    def rest(self) -> bool:
        """Make one pass of the others; False where nobody has one."""
        turn = self._agree(_NOTHING)
        if turn != _NOTHING:
            self._make_idle_pass(turn)
        return turn != _NOTHING

    def _await(self, number: int) -> None:
        """Return when the next pass is one of this rank's own, of the base `number`."""
        if self._is_idling:
            return
        while (turn := self._agree(number)) != number:
            self._make_idle_pass(turn)
        self.num_passes += 1

    @torch.no_grad()
    def _make_idle_pass(self, number: int) -> None:
        self._is_idling = True
        try:
            self._models[number - 1].logits(self._idle, {})
        finally:
            self._is_idling = False
        self.num_passes += 1


def greatest_of_group(number: int) -> int:
    """By the process group, which must be up."""
    wanted = torch.tensor([number])
    dist.all_reduce(wanted, op=dist.ReduceOp.MAX)
    return int(wanted)
