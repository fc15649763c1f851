"""Runs a rank's rows through the base, in forward passes that all ranks make together.

Under ZeRO-3 each pass is a collective act: ranks agree on the number of passes, and a rank with
fewer of them runs idle ones. Texts that no prompt precedes are computed once and kept.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from encoders.packed.context_cache import ContextCache
from encoders.packed.packing import PackedBatch, PackedRow, pack
from encoders.packed.pass_budget import split_by_budget
from orchestrator.training.sharded_base import ShardedBase

Take = Callable[[int, Tensor, PackedBatch], None]


class RankPasses:
    """Cuts rows into packs of at most `max_positions` and runs them. `total_positions` counts what
    went through the base."""

    def __init__(self, base: ShardedBase, cache: ContextCache, max_positions: int) -> None:
        self._base, self._cache, self._max_positions = base, cache, max_positions
        self.total_positions = 0

    def prepare(self, rows: Sequence[PackedRow]) -> None:
        """Compute the texts of `rows` that are not kept yet. All ranks call it together."""
        missing = self._cache.missing(rows, self._max_positions)
        for index in range(self._base.rounds(len(missing))):
            if index < len(missing):
                self._cache.compute(missing[index])
            else:
                self._idle(trains=False)

    def split(self, rows: Sequence[PackedRow]) -> list[tuple[PackedRow, ...]]:
        """Rows, in order, as packs."""
        return list(split_by_budget(rows, self._max_positions, self._cache))

    def run(
        self,
        packs: Sequence[tuple[PackedRow, ...]],
        virtual_tokens: Mapping[str, Tensor],
        take: Take,
        trains: bool,
    ) -> int:
        """Run `packs`; `take` is given each one's index, logits and batch, and goes backward if it
        `trains`. All ranks call it together; returns the number of passes they made."""
        lengths = {name: tokens.shape[0] for name, tokens in virtual_tokens.items()}
        rounds = self._base.rounds(len(packs))
        with torch.set_grad_enabled(trains):
            for index in range(rounds):
                if index < len(packs):
                    batch = pack(packs[index], lengths, self._cache).to(self._base.model.device)
                    self.total_positions += batch.num_positions
                    cached = self._cache.layers(batch)
                    take(index, self._base.model.logits(batch, virtual_tokens, cached), batch)
                else:
                    self._idle(trains)
        return rounds

    def _idle(self, trains: bool) -> None:
        logits = self._base.model.logits(*self._base.idle_batch())
        if trains:
            logits.sum().mul(0).backward()
