"""Decoding on a base that gives no states (padded_model.py): each step runs every sequence whole.

Slower by the length of the rows, with the same results as CachedSequences (decoding.py).

Shapes: R rows, N sequences in a step.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from encoders.packed.decoding import ROOM, PackEntries
from encoders.packed.decoding_slots import DecodingRoom
from encoders.packed.packed_model import PackedModel
from encoders.packed.packing import PackedRow


@dataclass(eq=False)
class WholeRow:
    """A living sequence as the row it has become."""

    row: PackedRow


class RecomputedSequences:
    """Sequences of a base that gives no states: each step runs them whole."""

    def __init__(
        self,
        model: PackedModel,
        virtual_tokens: Mapping[str, Tensor],
        passes: PackEntries,
        width: int = 1,
        room: DecodingRoom = ROOM,
    ) -> None:
        self._model, self._virtual, self._passes, self._width = model, virtual_tokens, passes, width
        self._max_rows = max(1, room.max_sequences // width)
        self._living: dict[WholeRow, None] = {}

    def admitted(self, lengths: Sequence[int]) -> list[int]:
        num_free = self._max_rows - len(self._living) // self._width
        return list(range(min(num_free, len(lengths))))

    def enter(
        self, rows: Sequence[PackedRow], lengths: Sequence[int]
    ) -> tuple[list[list[WholeRow]], Tensor]:
        places = [[WholeRow(row) for _ in range(self._width)] for row in rows]
        self._living.update((place, None) for each in places for place in each)
        return places, self._logits(rows)

    def step(self, tokens: Mapping[WholeRow, int]) -> tuple[list[WholeRow], Tensor]:
        places = list(self._living)
        for place in places:
            place.row = replace(place.row, context=(*place.row.context, tokens[place]))
        return places, self._logits([place.row for place in places])

    def copy(self, sources: Sequence[WholeRow], targets: Sequence[WholeRow]) -> None:
        rows = [source.row for source in sources]
        for target, row in zip(targets, rows, strict=True):
            target.row = row

    def leave(self, place: WholeRow) -> None:
        del self._living[place]

    @torch.no_grad()
    def _logits(self, rows: Sequence[PackedRow]) -> Tensor:
        logits: dict[int, Tensor] = {}
        for each in self._passes(rows):
            found = self._model.logits(each.batch, self._virtual, each.cache)
            logits.update(zip(each.rows, found, strict=False))
        return torch.stack([logits[i] for i in range(len(rows))])
