"""Where prefixes, virtual tokens and text stand in the rows of a batch: index arithmetic alone.

A composed row is `[prefix][virtual tokens][text]` without a gap, so that its positions, its sliding
windows and its relative distances are those of the row run alone, however the input was padded.
Shapes: B rows, T positions of the input, L slots of a composed row, R leading slots that hold a
prefix in every row and so need no query, Q = L - R slots that run through the base, V and P the
most virtual tokens and prefix slots of any row. A slot of L means 'nowhere'.
"""

from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from encoders.errors import PromptError


class Alignment(Enum):
    """Where the padding of composed rows stands."""

    LEFT = "rows start together"
    RIGHT = "rows end together"
    FRONT = "texts start together, after one region for all prefixes"  # keys have no order


@dataclass(frozen=True)
class RowLayout:
    """Slots of B composed rows.

    `mask` [B, L] is true where a slot holds something, `positions` [B, L] counts a row's own slots
    from 0, and the rest says at which slots the input's positions [B, T], the virtual tokens
    [B, V] (at the right) and the prefixes [B, P] (at the left) stand.
    """

    num_leading: int
    mask: Tensor
    positions: Tensor
    text_slots: Tensor
    virtual_slots: Tensor
    prefix_slots: Tensor

    @property
    def num_slots(self) -> int:
        return self.mask.shape[1]

    def place(self, values: Tensor, fill: int) -> Tensor:
        """The input's `values` [B, T] at their slots [B, Q], and `fill` at all others."""
        slots = self._empty(fill).scatter(1, self.text_slots, values.to(self.mask.device))
        return slots[:, self.num_leading : -1].contiguous()

    def embedding_rows(self, first_virtual: Tensor) -> Tensor:
        """For each slot [B, Q] its row in a table of one empty row, the input's B*T embeddings and
        then the virtual tokens, of which a row's own start at `first_virtual` [B]."""
        num_text = self.text_slots.numel()
        text = torch.arange(num_text, device=self.mask.device).view(self.text_slots.shape)
        num_virtual = self.virtual_slots.shape[1]
        counts = (self.virtual_slots < self.num_slots).sum(1)
        first = (first_virtual + counts + num_text - num_virtual).unsqueeze(1)
        virtual = first + torch.arange(num_virtual, device=self.mask.device)
        rows = self._empty(0).scatter(1, self.text_slots, text + 1)
        return rows.scatter(1, self.virtual_slots, virtual + 1)[:, self.num_leading : -1]

    def prefix_rows(self, first_prefix: Tensor) -> Tensor:
        """For each slot [B, L] its row in a table of one empty row and then the prefixes, of which
        a row's own starts at `first_prefix` [B]."""
        order = torch.arange(self.prefix_slots.shape[1], device=self.mask.device)
        rows = first_prefix.unsqueeze(1) + order
        return self._empty(0).scatter(1, self.prefix_slots, rows + 1)[:, :-1]

    def take(self, states: Tensor, fill: float = 0.0, with_virtual: bool = False) -> Tensor:
        """What `states` [B, Q, ...] hold at the input's positions: [B, T, ...].

        Padding gets `fill`. With `with_virtual` virtual positions come first: [B, V + T, ...].
        """
        slots = self._output_slots(with_virtual).to(states.device) - self.num_leading
        first, length = int(slots[0, 0]), slots.shape[1]
        in_order = torch.arange(first, first + length).to(slots)
        if first + length <= states.shape[1] and bool((slots == in_order).all()):
            return states.narrow(1, first, length)  # logits are large: no copy without need
        index = slots.clamp(0, states.shape[1] - 1)
        rows = torch.arange(len(index), device=states.device).unsqueeze(1)
        is_nowhere = slots == self.num_slots - self.num_leading
        is_nowhere = is_nowhere.view(*slots.shape, *[1] * (states.dim() - 2))
        return states[rows, index].masked_fill_(is_nowhere, fill)

    def take_keys(self, weights: Tensor, with_virtual: bool = False) -> Tensor:
        """As `take`, of the keys of attention weights [B, heads, queries, L]."""
        slots = self._output_slots(with_virtual).to(weights.device)[:, None, None]
        index = slots.clamp(max=self.num_slots - 1).expand(*weights.shape[:3], -1)
        return weights.gather(3, index).masked_fill(slots == self.num_slots, 0.0)

    def _output_slots(self, with_virtual: bool) -> Tensor:
        if not with_virtual:
            return self.text_slots
        return torch.cat([self.virtual_slots, self.text_slots], dim=1)

    def _empty(self, fill: int) -> Tensor:
        """[B, L + 1]: the last slot takes what stands nowhere."""
        shape = (self.mask.shape[0], self.num_slots + 1)
        return torch.full(shape, fill, dtype=torch.long, device=self.mask.device)


def lay_out(
    text_mask: Tensor,
    num_virtual: Tensor,
    num_prefix: Tensor,
    alignment: Alignment,
    may_lead: bool = True,
) -> RowLayout:
    """Lay out rows of the texts where `text_mask` [B, T] is true, `num_virtual` [B] virtual tokens
    and `num_prefix` [B] prefix slots. Without `may_lead` every slot gets a query (R = 0).

    Raises PromptError for a row without any text.
    """
    if not bool(text_mask.any(1).all()):
        empty = (~text_mask.any(1)).nonzero()[:, 0].tolist()
        raise PromptError(f"the rows {empty} have no text: attention_mask is 0 all along them")
    lengths = num_prefix + num_virtual + text_mask.sum(1)
    is_front = alignment is Alignment.FRONT
    region = int(num_prefix.max()) if is_front else 0
    num_slots = region + int((lengths - num_prefix if is_front else lengths).max())
    # a slot's position is the slot less its row's offset, but in the region the slot itself
    offset = region - num_prefix if is_front else torch.zeros_like(lengths)
    if alignment is Alignment.RIGHT:
        offset = num_slots - lengths
    slots = torch.arange(num_slots, device=text_mask.device).unsqueeze(0)
    positions = torch.where(slots < region, slots, slots - offset.unsqueeze(1))
    ends = torch.where(slots < region, num_prefix.unsqueeze(1), lengths.unsqueeze(1))
    first_virtual = num_prefix + offset
    first_text = first_virtual + num_virtual
    text_slots = first_text.unsqueeze(1) + text_mask.cumsum(1) - 1
    prefix_starts = torch.zeros_like(offset) if is_front else offset
    return RowLayout(
        num_leading=_num_leading(num_prefix, offset, region) if may_lead else 0,
        mask=(positions >= 0) & (positions < ends),
        positions=positions.clamp(min=0),
        text_slots=torch.where(text_mask, text_slots, num_slots),
        virtual_slots=_slots_of(num_virtual, first_virtual, num_slots, at_right=True),
        prefix_slots=_slots_of(num_prefix, prefix_starts, num_slots, at_right=False),
    )


def _num_leading(num_prefix: Tensor, offset: Tensor, region: int) -> int:
    """Leading slots that hold a prefix in every row: R."""
    if region:
        return region
    return int(num_prefix.min()) if not bool(offset.any()) else 0


def _slots_of(counts: Tensor, starts: Tensor, nowhere: int, at_right: bool) -> Tensor:
    """Slots [B, most] from `starts` [B] on, `counts` [B] of them in each row."""
    most = int(counts.max())
    order = torch.arange(most, device=counts.device).unsqueeze(0)
    if at_right:
        order = order - (most - counts).unsqueeze(1)
    is_there = (order >= 0) & (order < counts.unsqueeze(1))
    return torch.where(is_there, starts.unsqueeze(1) + order, nowhere)
