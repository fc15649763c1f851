"""A block of a bank: up to `capacity` encoders of one shape, each a row of stacked tensors.

Rows in use stand first; the last one moves into a gap. Memory of rows never used is never touched.
Shapes: n rows in a pass, S weights of an encoder, V virtual tokens, D token_dim.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from encoders.bank.stacked_encoder import EncoderShape
from encoders.bank.stacked_optimizer import Rows, StackedOptimizer, named_views

Views = dict[str, Tensor]


class Block:
    """Stacked weights, buffers and optimizer state of encoders of `shape`."""

    def __init__(self, shape: EncoderShape, optimizer: StackedOptimizer, capacity: int) -> None:
        self.shape, self.optimizer, self.capacity = shape, optimizer, capacity
        self.num_rows = 0

        def stack(size: Sequence[int]) -> Tensor:
            return torch.empty((capacity, *size), dtype=shape.dtype, device=shape.device)

        self._weights = stack((shape.num_elements,))
        self._parameters = named_views(shape.parameters, self._weights)
        self._buffers = {name: stack(size) for name, size in shape.buffers}
        self._state = {name: stack(size) for name, size in optimizer.state_shapes().items()}

    def add(self) -> int:
        """Take the next row."""
        self.num_rows += 1
        return self.num_rows - 1

    def remove(self, row: int) -> int:
        """Give a row back; returns the row whose content stands there now."""
        self.num_rows -= 1
        self.copy_row(row, self, self.num_rows)
        return self.num_rows

    def copy_row(self, row: int, source: "Block", source_row: int) -> None:
        """Make `row` what a row of a block of the same shape and optimizer is."""
        for name, stack in self._stacks().items():
            stack[row] = source._stacks()[name][source_row]

    def _stacks(self) -> Views:
        state = {f"state.{name}": stack for name, stack in self._state.items()}
        return {"weights": self._weights, **self._buffers, **state}

    def tensors(self, row: int) -> Views:
        """A row's parameters and buffers by name; writing to them changes the encoder."""
        return {name: stack[row] for name, stack in (self._parameters | self._buffers).items()}

    def optimizer_state(self, row: int) -> Views:
        """A row's optimizer state by name, to read or write."""
        return {name: stack[row] for name, stack in self._state.items()}

    def emit(self, rows: Sequence[int], masks: Tensor | None, learns: bool) -> tuple[Tensor, Views]:
        """The virtual tokens [n, V, D] of `rows`, and the parameters that they were made of, which
        take gradients if the pass `learns`.

        A lone row is run twice: matrix kernels give it other bits alone than among others.
        """
        wanted = list(rows) if len(rows) > 1 else [*rows, *rows]
        parameters = {
            name: _rows(stack, wanted).detach().requires_grad_(learns)
            for name, stack in self._parameters.items()
        }
        buffers = {name: _rows(stack, wanted) for name, stack in self._buffers.items()}
        if masks is not None and len(rows) == 1:
            masks = masks.expand(2, *masks.shape[1:])
        with torch.set_grad_enabled(learns):
            tokens = self.shape.emit(parameters, buffers, masks)[: len(rows)]
        return tokens, parameters

    def gradients(self, tokens: Tensor, parameters: Views, token_grads: Tensor) -> Tensor:
        """Gradients [n, S] of the weights that `emit` made `tokens` of."""
        grads = torch.autograd.grad(tokens, list(parameters.values()), token_grads)
        return torch.cat([grad[: len(tokens)].flatten(1) for grad in grads], dim=1)

    def step(self, rows: Sequence[int], grads: Tensor, settings: Rows) -> None:
        """One optimizer step of `rows` by `grads` [n, S]."""
        weights = _rows(self._weights, rows)
        state = {name: _rows(stack, rows) for name, stack in self._state.items()}
        self.optimizer.step(weights, grads, state, settings)
        if not _is_prefix(rows):
            index = torch.tensor(rows, device=self.shape.device)
            self._weights[index] = weights
            for name, stack in self._state.items():
                stack[index] = state[name]

    def load(self, row: int, values: Mapping[str, Tensor]) -> None:
        """Replace a row's parameters and buffers; the optimizer's state of the row becomes zero."""
        for name, tensor in self.tensors(row).items():
            tensor.copy_(values[name])
        for tensor in self.optimizer_state(row).values():
            tensor.zero_()


def _rows(stack: Tensor, rows: Sequence[int]) -> Tensor:
    """Rows of a stack: the stack's own memory where they are its first ones, else a copy."""
    if _is_prefix(rows):
        return stack[: len(rows)]
    return stack[torch.tensor(rows, device=stack.device)]


def _is_prefix(rows: Sequence[int]) -> bool:
    return list(rows) == list(range(len(rows)))
