"""Decoding, one position of each living sequence a step, rows of any prompt together.

Rows enter packed, in one pass that keeps their keys and values in slots (decoding_slots.py); from
then on a step runs one position a sequence. Sequences enter and leave between any two steps. A base
that gives no states is served by decoding_whole.py.

Shapes: R rows, W sequences a row (its beams), N sequences in a step.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from encoders.packed.decoding_layout import DecodingLayout
from encoders.packed.decoding_slots import (
    DecodingRoom,
    Place,
    SlotPool,
    capacity_for,
    plan_slots,
    position_bytes,
)
from encoders.packed.packed_attention import LayerStates
from encoders.packed.packed_model import PackedModel
from encoders.packed.packing import MIN_POSITIONS, PackedBatch, PackedRow, pack
from encoders.packed.pass_budget import split_by_budget

MAX_POSITIONS = 2048  # of one pass in which rows enter
ROOM = DecodingRoom()
#: Rows wait until this share of their slots is free, so that those who enter share a pass.
ENTERING_SHARE = 1 / 8


@dataclass(frozen=True)
class EntryPass:
    """A forward pass of some of the rows given: their places among them, the batch, and the states
    of the openings that it was packed without."""

    rows: Sequence[int]
    batch: PackedBatch
    cache: Sequence[LayerStates] | None = None


P = TypeVar("P")

#: Packs rows without answers into passes, all of them, in any order.
PackEntries = Callable[[Sequence[PackedRow]], Iterable[EntryPass]]


class Sequences(Protocol[P]):
    """Living sequences; each is known by its place, of type P."""

    def admitted(self, lengths: Sequence[int]) -> list[int]:
        """Which of the rows that wait, and grow to `lengths`, may enter now."""
        ...

    def enter(
        self, rows: Sequence[PackedRow], lengths: Sequence[int]
    ) -> tuple[list[list[P]], Tensor]:
        """Take in rows that grow to `lengths`: W equal sequences each, and logits [R, vocabulary]
        after their contexts."""
        ...

    def step(self, tokens: Mapping[P, int]) -> tuple[list[P], Tensor]:
        """Put a token behind each living sequence: all of them, in the order of the logits
        [N, vocabulary] that follow."""
        ...

    def copy(self, sources: Sequence[P], targets: Sequence[P]) -> None:
        """Each target becomes what its source is; all are sequences of one row."""
        ...

    def leave(self, place: P) -> None: ...


def pack_whole(lengths: Mapping[str, int], max_positions: int = MAX_POSITIONS) -> PackEntries:
    """Entry passes that pack rows whole; `lengths` are the prompts' virtual tokens. Rows of one
    prompt share what they open with."""

    def passes(rows: Sequence[PackedRow]) -> Iterator[EntryPass]:
        order = sorted(range(len(rows)), key=lambda i: (rows[i].prompt or "", len(rows[i].context)))
        first = 0
        for run in split_by_budget([rows[i] for i in order], max_positions):
            yield EntryPass(order[first : first + len(run)], pack(run, lengths))
            first += len(run)

    return passes


class CachedSequences:
    """Sequences whose keys and values are kept. `lengths`: what all rows to come grow to, by which
    `room` is shared out; `width`: sequences a row."""

    def __init__(
        self,
        model: PackedModel,
        virtual_tokens: Mapping[str, Tensor],
        passes: PackEntries,
        lengths: Iterable[int],
        width: int = 1,
        room: DecodingRoom = ROOM,
    ) -> None:
        self._model, self._virtual, self._passes, self._width = model, virtual_tokens, passes, width
        slots = plan_slots(lengths, width, position_bytes(model), room)
        self._pools = {each: SlotPool(model, count, each) for each, count in slots.items()}

    def admitted(self, lengths: Sequence[int]) -> list[int]:
        waiting: dict[int, list[int]] = {}
        for index, length in enumerate(lengths):
            waiting.setdefault(capacity_for(length), []).append(index)
        entering: list[int] = []
        for capacity, indices in waiting.items():
            entering += indices[: self._num_entering(self._pools[capacity], len(indices))]
        return sorted(entering)

    def _num_entering(self, pool: SlotPool, num_waiting: int) -> int:
        num_rows, num_free = pool.num_slots // self._width, pool.num_free // self._width
        is_worth_a_pass = num_free >= min(num_waiting, math.ceil(ENTERING_SHARE * num_rows))
        return num_free if is_worth_a_pass else 0

    @torch.no_grad()
    def enter(
        self, rows: Sequence[PackedRow], lengths: Sequence[int]
    ) -> tuple[list[list[Place]], Tensor]:
        places: dict[int, list[Place]] = {}
        logits: dict[int, Tensor] = {}
        for each in self._passes(rows):
            record: dict[int, LayerStates] = {}
            found = self._model.logits(each.batch, self._virtual, each.cache, record)
            logits.update(zip(each.rows, found, strict=False))
            layers = _joined(each.cache, [record[layer] for layer in sorted(record)])
            places.update(self._keep(each, layers, lengths))
        order = range(len(rows))
        return [places[i] for i in order], torch.stack([logits[i] for i in order])

    @torch.no_grad()
    def step(self, tokens: Mapping[Place, int]) -> tuple[list[Place], Tensor]:
        steps = [pool.step() for pool in self._pools.values() if pool.num_free < pool.num_slots]
        places = [place for _, here in steps for place in here]
        ids = [tokens[place] for place in places]
        positions = [place.length - 1 for place in places]
        filler = max(0, MIN_POSITIONS - len(places))  # see MIN_POSITIONS
        layout = DecodingLayout([part for part, _ in steps], max(positions) + 1)
        logits = self._model.step_logits(
            torch.tensor(ids + ids[:1] * filler),
            torch.tensor(positions + positions[:1] * filler),
            layout,
        )
        return places, logits[: len(places)]

    def copy(self, sources: Sequence[Place], targets: Sequence[Place]) -> None:
        self._pools[targets[0].capacity].copy(sources, targets)

    def leave(self, place: Place) -> None:
        self._pools[place.capacity].leave(place)

    def _keep(
        self, each: EntryPass, layers: Sequence[LayerStates], lengths: Sequence[int]
    ) -> Iterator[tuple[int, list[Place]]]:
        """Put the states of a pass's rows into slots, those of one capacity at once."""
        num_cached = len(each.cache[0].key) if each.cache else 0
        groups: dict[int, list[tuple[int, list[int]]]] = {}
        for row, segment in zip(each.rows, each.batch.row_segments, strict=True):
            packed = segment.keys()
            own = [*segment.cached_keys(), *(num_cached + position for position in packed)]
            groups.setdefault(capacity_for(lengths[row]), []).append((row, own))
        for capacity, group in groups.items():
            positions = [own for _, own in group for _ in range(self._width)]
            places = self._pools[capacity].enter(layers, positions)
            for number, (row, _) in enumerate(group):
                yield row, places[number * self._width : (number + 1) * self._width]


def _joined(
    cache: Sequence[LayerStates] | None, layers: Sequence[LayerStates]
) -> Sequence[LayerStates]:
    """Every layer's states [C + N, G, d], the cached ones first."""
    if not cache:
        return layers
    return [
        LayerStates(
            torch.cat([old.key.to(new.key.dtype), new.key]),
            torch.cat([old.value.to(new.value.dtype), new.value]),
        )
        for old, new in zip(cache, layers, strict=True)
    ]
