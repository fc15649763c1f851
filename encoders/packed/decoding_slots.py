"""Memory for the keys and values of sequences that are being decoded: pools of equal slots.

A sequence takes a slot of the smallest capacity that holds its longest length, for as long as it
lives; a slot is used again by the next. A pool's living sequences are its first slots: before a
step the last one moves into a gap, nothing else moves. A slot is always filled whole, with
positions of its own sequence, so that what one sequence holds, a NaN even, never reaches another.

Shapes: S slots, L their capacity, T positions, G key heads, d their size.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from encoders.packed.decoding_layout import PoolStep, SlotStates
from encoders.packed.packed_attention import LayerStates
from encoders.packed.packed_model import PackedModel

MIN_CAPACITY = 16
MAX_SEQUENCES = 256  # far beyond where a step's products, not its memory, take the time
MAX_STATE_BYTES = 512 << 20


@dataclass(frozen=True)
class DecodingRoom:
    """How many sequences are decoded at once, and the bytes of their keys and values. One row at
    a time is decoded in any case, for each capacity that rows need."""

    max_sequences: int = MAX_SEQUENCES
    max_bytes: int = MAX_STATE_BYTES


@dataclass(eq=False)
class Place:
    """Where a living sequence lies: its pool's capacity, its slot, and its `length` so far."""

    capacity: int
    slot: int
    length: int


class SlotPool:
    """`num_slots` slots of `capacity` positions each, of one model."""

    def __init__(self, model: PackedModel, num_slots: int, capacity: int) -> None:
        dtype, device = model.model.get_input_embeddings().weight.dtype, model.device

        def room(heads: int, size: int) -> Tensor:
            return torch.empty(num_slots, heads, capacity, size, dtype=dtype, device=device)

        self.capacity, self.num_slots = capacity, num_slots
        self._states = SlotStates(
            tuple(room(*key) for key, _ in model.state_shapes),
            tuple(room(*value) for _, value in model.state_shapes),
        )
        self._places: dict[int, Place] = {}

    @property
    def num_free(self) -> int:
        return self.num_slots - len(self._places)

    def enter(
        self, layers: Sequence[LayerStates], positions: Sequence[Sequence[int]]
    ) -> list[Place]:
        """Take a slot for each sequence; it holds the given `positions` of the states [N, G, d]."""
        free = (slot for slot in range(self.num_slots) if slot not in self._places)
        slots = [slot for slot, _ in zip(free, positions, strict=False)]
        assert len(slots) == len(positions), "more sequences than slots"
        padded = [[*own, *[own[-1]] * (self.capacity - len(own))] for own in positions]
        device = self._states.keys[0].device
        index, target = torch.tensor(padded, device=device), torch.tensor(slots, device=device)
        for number, layer in enumerate(layers):
            for held, new in (
                (self._states.keys[number], layer.key),
                (self._states.values[number], layer.value),
            ):
                rows = new.index_select(0, index.flatten()).view(*index.shape, *new.shape[1:])
                held.index_copy_(0, target, rows.transpose(1, 2).to(held.dtype))
        places = [
            Place(self.capacity, slot, len(own)) for slot, own in zip(slots, positions, strict=True)
        ]
        self._places.update({place.slot: place for place in places})
        return places

    def leave(self, place: Place) -> None:
        """Its slot is free from now on."""
        assert self._places.pop(place.slot) is place, "a sequence left twice"

    def copy(self, sources: Sequence[Place], targets: Sequence[Place]) -> None:
        """Each of `targets` becomes what its source was before; all are living sequences."""
        device = self._states.keys[0].device
        source, target = (
            torch.tensor([place.slot for place in places], device=device)
            for places in (sources, targets)
        )
        for held in (*self._states.keys, *self._states.values):
            held.index_copy_(0, target, held.index_select(0, source))
        for place, length in zip(targets, [each.length for each in sources], strict=True):
            place.length = length

    def step(self) -> tuple[PoolStep, list[Place]]:
        """The next step of all living sequences, in the order of their slots; they grow by one."""
        self._close_gaps()
        places = [self._places[slot] for slot in range(len(self._places))]
        positions = torch.tensor([place.length for place in places])
        for place in places:
            place.length += 1
        return PoolStep(self._states, positions.to(self._states.keys[0].device)), places

    def _close_gaps(self) -> None:
        count = len(self._places)
        gaps = [slot for slot in range(count) if slot not in self._places]
        for gap, last in zip(gaps, [slot for slot in self._places if slot >= count], strict=True):
            for held in (*self._states.keys, *self._states.values):
                held[gap].copy_(held[last])
            place = self._places[gap] = self._places.pop(last)
            place.slot = gap


def capacity_for(length: int) -> int:
    """The next of 16, 24, 32, 48, 64, 96, ...: it follows from the sequence alone."""
    power: int = max(MIN_CAPACITY, 1 << max(length - 1, 0).bit_length())
    return max(MIN_CAPACITY, power * 3 // 4 if length <= power * 3 // 4 else power)


def position_bytes(model: PackedModel) -> int:
    """Bytes of one position's keys and values in all layers."""
    size: int = model.model.get_input_embeddings().weight.dtype.itemsize
    return size * sum(key.numel() + value.numel() for key, value in model.state_shapes)


def plan_slots(
    lengths: Iterable[int], width: int, position_bytes: int, room: DecodingRoom
) -> Mapping[int, int]:
    """Slots for each capacity, where rows grow to `lengths` and take `width` slots each.

    Where not all rows fit in `room`, each capacity gets its share, so that all end together.
    """
    rows = Counter(capacity_for(length) for length in lengths)
    num_bytes = sum(count * width * each * position_bytes for each, count in rows.items())
    share = min(
        1.0,
        room.max_sequences / max(1, width * sum(rows.values())),
        room.max_bytes / max(1, num_bytes),
    )
    return {each: width * max(1, int(count * share)) for each, count in sorted(rows.items())}
