"""A bank of prompt encoders that learn side by side, each as if it were alone.

An encoder is admitted to a slot and leaves it between two steps; the others stay where they are.
Encoders of one shape stand in one stack (block.py), several shapes side by side; encoder_step.py
steps them. A slot's results do not depend on the others: to the bit for tables and MLPs, and for
LSTMs where their hidden size is a multiple of 32 (else to 1e-6: sigmoid and tanh round the tails of
their vectors differently).
"""

from torch import nn

from encoders.bank.block import Block
from encoders.bank.slot import Slot, SlotOptions
from encoders.bank.stacked_encoder import EncoderShape
from encoders.bank.stacked_optimizer import StackedOptimizer
from encoders.errors import EncoderError

BLOCK_BYTES = 2**25  # of stacked weights; a step's gradients and copies take a few times as much
MAX_BLOCK_ROWS = 64


class EncoderBank:
    """Slots for prompt encoders of any shapes."""

    def __init__(self) -> None:
        self._blocks: dict[tuple[EncoderShape, StackedOptimizer], list[Block]] = {}
        self._slots: dict[tuple[int, int], Slot] = {}  # by block and row

    def __len__(self) -> int:
        """Slots in use."""
        return len(self._slots)

    def admit(self, module: nn.Module, options: SlotOptions) -> Slot:
        """Copy an encoder into a free slot. Raises EncoderError for one that cannot be stacked."""
        shape = EncoderShape.of(module)
        blocks = self._blocks.setdefault((shape, options.stacked(shape)), [])
        block = next((each for each in blocks if each.num_rows < each.capacity), None)
        if block is None:
            size = shape.num_elements * shape.dtype.itemsize
            capacity = min(max(BLOCK_BYTES // size, 1), MAX_BLOCK_ROWS)
            block = Block(shape, options.stacked(shape), capacity)
            blocks.append(block)
        slot = Slot(block, block.add(), options)
        block.load(slot.row, module.state_dict())
        self._slots[id(block), slot.row] = slot
        return slot

    def release(self, slot: Slot) -> None:
        """Empty a slot, between two steps. It keeps a copy of its encoder, outside the bank, for as
        long as someone holds it. Raises EncoderError for a slot of another bank."""
        if self._slots.get((id(slot.block), slot.row)) is not slot:
            raise EncoderError("the slot is not of this bank, or was released already")
        block, row = slot.block, slot.row
        slot.block = Block(block.shape, block.optimizer, capacity=1)
        slot.row = slot.block.add()
        slot.block.copy_row(slot.row, block, row)
        last = block.remove(row)
        moved = self._slots.pop((id(block), last))
        if moved is not slot:
            moved.row = row
            self._slots[id(block), row] = moved
        if not block.num_rows:
            self._blocks[block.shape, block.optimizer].remove(block)
