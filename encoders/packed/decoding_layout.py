"""Who attends to whom in a decoding step: a sequence's next position to all before it, and itself.

Sequences lie in slots of pools (decoding_slots.py); a pool's sequences are its first slots, so that
attention reads keys and values where they lie. How wide a sequence attends is its pool's capacity:
its neighbours do not change a bit of its results.

Shapes: n sequences of a pool with S slots, L its capacity, G key heads, d their size.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class SlotStates:
    """Every layer's `keys` and `values` [S, G, L, d], each layer's its own tensor."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]


@dataclass(frozen=True)
class PoolStep:
    """A pool's part of a step: its sequences in slots 0 to n - 1, whose next positions are
    `positions` [n], from 0."""

    states: SlotStates
    positions: Tensor
    _biases: dict[int | None, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.positions)

    def write(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Put the new positions' key and value [n, G, d] into their slots."""
        keys, values = self.states.keys[layer], self.states.values[layer]
        keys.view(-1, keys.shape[-1]).index_copy_(0, self._rows, key.flatten(0, 1))
        values.view(-1, values.shape[-1]).index_copy_(0, self._rows, value.flatten(0, 1))

    def bias(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """What is added to scores [n, G, r, 1, L]: 0, or -inf where a position may not look."""
        if window not in self._biases:
            place = torch.arange(self._capacity, device=self.positions.device)
            now = self.positions[:, None]
            hidden = place > now
            if window is not None:
                hidden |= place <= now - window
            bias = torch.zeros(hidden.shape, dtype=dtype, device=place.device)
            self._biases[window] = bias.masked_fill_(hidden, -torch.inf)[:, None, None, None]
        return self._biases[window]

    @property
    def _capacity(self) -> int:
        return self.states.keys[0].shape[2]

    @cached_property
    def _rows(self) -> Tensor:
        """Where the new positions stand in a layer's tensor seen as [S * G * L, d]: [n * G]."""
        num_heads = self.states.keys[0].shape[1]
        slots = torch.arange(len(self) * num_heads, device=self.positions.device)
        return slots * self._capacity + self.positions.repeat_interleave(num_heads)


@dataclass(frozen=True)
class DecodingLayout:
    """The parts of a step, one behind the other; positions beyond theirs are filler."""

    parts: Sequence[PoolStep]
    max_length: int
