"""One training step of any slots, and their virtual tokens outside training.

What slots of one block need is computed together. Shapes: V virtual tokens, D token_dim.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from encoders.bank.block import Block, Views
from encoders.bank.slot import Slot
from encoders.bank.stacked_optimizer import Rows, row_norms
from encoders.errors import EncoderError


@dataclass(frozen=True)
class _Pass:
    """The virtual tokens [n, V, D] of slots of one block, on their way to a step."""

    block: Block
    slots: list[Slot]
    tokens: Tensor
    parameters: Views
    leaves: list[Tensor]


class EncoderStep:
    """A step of `slots`: hands out `leaves`, the virtual tokens [V, D] of each, that gather their
    gradients; `finish` carries these through the encoders.

    Dropout is drawn from each slot's own generator. Slots are admitted, released and restored
    between steps, not within one.
    """

    def __init__(self, slots: Sequence[Slot]) -> None:
        self._passes = [_begin(block, members) for block, members in _by_block(slots)]
        leaves = {s: leaf for p in self._passes for s, leaf in zip(p.slots, p.leaves, strict=True)}
        self.leaves = [leaves[slot] for slot in slots]

    def finish(self, slots: Collection[Slot]) -> None:
        """Step those of `slots` that are not frozen; the others stay as they were. Raises
        EncoderError for one whose leaf has no gradient."""
        wanted = {slot for slot in slots if not slot.is_frozen}
        for each in self._passes:
            _finish(each, wanted)


def virtual_tokens(slots: Sequence[Slot]) -> list[Tensor]:
    """The virtual tokens [V, D] of each slot as evaluation and inference use them."""
    tokens: dict[Slot, Tensor] = {}
    for block, members in _by_block(slots):
        emitted, _ = block.emit([slot.row for slot in members], None, learns=False)
        tokens |= zip(members, (row.clone() for row in emitted), strict=True)
    return [tokens[slot] for slot in slots]


def _begin(block: Block, slots: list[Slot]) -> _Pass:
    masks = block.shape.dropout_masks([slot.generator for slot in slots])
    tokens, parameters = block.emit([slot.row for slot in slots], masks, learns=True)
    leaves = [row.clone().requires_grad_() for row in tokens.detach()]
    return _Pass(block, slots, tokens, parameters, leaves)


def _finish(each: _Pass, wanted: set[Slot]) -> None:
    index = [i for i, slot in enumerate(each.slots) if slot in wanted]
    if not index:
        return
    token_grads = torch.zeros_like(each.tokens)
    for i in index:
        grad = each.leaves[i].grad
        if grad is None:
            raise EncoderError("a slot is to step, but nothing was computed from its leaf")
        token_grads[i] = grad
    grads = each.block.gradients(each.tokens, each.parameters, token_grads)
    slots = [each.slots[i] for i in index]
    grads = grads if len(slots) == len(each.slots) else grads[index]
    _clip(grads, [slot.options.max_grad_norm for slot in slots])
    settings = Rows(
        [slot.options.learning_rate_after(slot.num_steps) for slot in slots],
        [slot.options.weight_decay for slot in slots],
        [slot.num_steps + 1 for slot in slots],
    )
    each.block.step([slot.row for slot in slots], grads, settings)
    for slot in slots:
        slot.num_steps += 1


def _by_block(slots: Sequence[Slot]) -> Iterator[tuple[Block, list[Slot]]]:
    """The slots by their blocks, in the order of their rows."""
    blocks: dict[int, tuple[Block, list[Slot]]] = {}
    for slot in sorted(slots, key=lambda slot: slot.row):
        blocks.setdefault(id(slot.block), (slot.block, []))[1].append(slot)
    yield from blocks.values()


def _clip(grads: Tensor, limits: Sequence[float | None]) -> None:
    """Scale each row of [n, S] down to its limit, in place. Source: torch's clip_grad_norm_."""
    if all(limit is None for limit in limits):
        return
    scales = [
        1.0 if limit is None else min(1.0, limit / (norm + 1e-6))
        for limit, norm in zip(limits, row_norms(grads), strict=True)
    ]
    grads.mul_(grads.new_tensor(scales).unsqueeze(1))
