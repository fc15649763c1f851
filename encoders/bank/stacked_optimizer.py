"""AdamW, SGD and Adafactor over stacked encoders: one row of weights an encoder, each with its own
learning rate, weight decay and step count.

Every result is a row's own, to the bit: products, sums, quotients and roots are rounded one by one
(never fused), and what is summed over a row is summed row by row. Sources: torch.optim.AdamW, SGD
and Adafactor. Shapes: n rows, S weights of a row.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from encoders.bank.stacked_encoder import TensorShapes

OptimizerKind = Literal["adamw", "sgd", "adafactor"]
State = Mapping[str, Tensor]  # by name, stacked [n, ...]


@dataclass(frozen=True)
class Rows:
    """Each row's settings for one step: `steps` counts this one, from 1."""

    learning_rates: Sequence[float]
    weight_decays: Sequence[float]
    steps: Sequence[int]


class StackedOptimizer(Protocol):
    """Steps n rows of weights."""

    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        """The state of one row."""

    def step(self, weights: Tensor, grads: Tensor, state: State, rows: Rows) -> None:
        """Change `weights` [n, S] and `state` in place by `grads` [n, S]."""


@dataclass(frozen=True)
class AdamW:
    """Decoupled weight decay, moments corrected by each row's own step count."""

    shapes: TensorShapes
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"exp_avg": (_numel(self.shapes),), "exp_avg_sq": (_numel(self.shapes),)}

    def step(self, weights: Tensor, grads: Tensor, state: State, rows: Rows) -> None:
        beta1, beta2 = self.betas
        _decay(weights, rows)
        mean = state["exp_avg"].mul_(beta1).add_(grads * (1 - beta1))
        square = state["exp_avg_sq"].mul_(beta2).add_((grads * grads).mul_(1 - beta2))
        sizes = [
            -rate / (1 - beta1**step)
            for rate, step in zip(rows.learning_rates, rows.steps, strict=True)
        ]
        roots = [(1 - beta2**step) ** 0.5 for step in rows.steps]
        update = square.sqrt().div_(_column(roots, weights)).add_(self.eps)
        weights.add_(torch.div(mean * _column(sizes, weights), update, out=update))


@dataclass(frozen=True)
class SGD:
    """Plain or with momentum; weight decay is part of the gradient."""

    shapes: TensorShapes
    momentum: float = 0.0

    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"momentum_buffer": (_numel(self.shapes),)} if self.momentum else {}

    def step(self, weights: Tensor, grads: Tensor, state: State, rows: Rows) -> None:
        if any(rows.weight_decays):
            grads = grads + weights * _column(rows.weight_decays, weights)
        if self.momentum:
            grads = state["momentum_buffer"].mul_(self.momentum).add_(grads)
        weights.sub_(grads * _column(rows.learning_rates, weights))


@dataclass(frozen=True)
class Adafactor:
    """Second moments of a matrix as a row and a column; updates clipped to a root mean square of 1
    and scaled to the parameter's own size."""

    shapes: TensorShapes
    beta2_decay: float = -0.8
    smallest_scale: float = 1e-3
    clip: float = 1.0

    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {}
        for name, shape in self.shapes:
            if len(shape) > 1:
                shapes[f"row_var.{name}"] = (*shape[:-1], 1)
                shapes[f"col_var.{name}"] = (*shape[:-2], 1, shape[-1])
            else:
                shapes[f"variance.{name}"] = tuple(shape)
        return shapes

    def step(self, weights: Tensor, grads: Tensor, state: State, rows: Rows) -> None:
        eps = torch.finfo(weights.dtype).eps
        new_share = [step**self.beta2_decay for step in rows.steps]
        rates = [
            min(rate, step**-0.5)
            for rate, step in zip(rows.learning_rates, rows.steps, strict=True)
        ]
        before = weights.clone()
        _decay(weights, rows)
        for name, weight, grad in _by_name(self.shapes, before, grads):
            estimate = self._estimate(name, grad, state, new_share, eps)
            update = estimate.clamp_(min=eps * eps).sqrt_().reciprocal_().mul_(grad)
            sizes = [
                -rate * max(self.smallest_scale, scale) / max(1.0, size / self.clip)
                for rate, scale, size in zip(rates, _rms(weight), _rms(update), strict=True)
            ]
            _view(self.shapes, weights, name).add_(update * _column(sizes, update))

    def _estimate(
        self, name: str, grad: Tensor, state: State, new_share: Sequence[float], eps: float
    ) -> Tensor:
        """The second moment of each gradient, from what `state` keeps of it."""
        share = _column(new_share, grad)
        square = grad * grad
        if grad.dim() == 2:  # a vector of each row
            return _blend(state[f"variance.{name}"], square, share).clone()
        of_rows = _blend(state[f"row_var.{name}"], square.mean(-1, keepdim=True), share)
        of_columns = _blend(state[f"col_var.{name}"], square.mean(-2, keepdim=True), share)
        return of_rows * of_columns / of_rows.mean(-2, keepdim=True).clamp_(min=eps)


def row_norms(rows: Tensor) -> list[float]:
    """The Euclidean norm of each of [n, ...], summed row by row."""
    return [float(torch.linalg.vector_norm(row)) for row in rows]


def _rms(rows: Tensor) -> list[float]:
    return [norm / row.numel() ** 0.5 for norm, row in zip(row_norms(rows), rows, strict=True)]


def _decay(weights: Tensor, rows: Rows) -> None:
    """Decoupled weight decay: weights shrink by learning rate x decay."""
    if any(rows.weight_decays):
        pairs = zip(rows.learning_rates, rows.weight_decays, strict=True)
        weights.mul_(_column([1 - rate * decay for rate, decay in pairs], weights))


def _blend(kept: Tensor, new: Tensor, share: Tensor) -> Tensor:
    """Move `kept` by `share` of its way to `new`, in place."""
    return kept.add_((new - kept).mul_(share))


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    """[n, 1, ...]: one value a row, to be broadcast over `like`."""
    return like.new_tensor(values).view(-1, *[1] * (like.dim() - 1))


def _numel(shapes: TensorShapes) -> int:
    return sum(shape.numel() for _, shape in shapes)


def _view(shapes: TensorShapes, flat: Tensor, wanted: str) -> Tensor:
    """The tensor `wanted` [n, ...] within rows [n, S]."""
    return named_views(shapes, flat)[wanted]


def named_views(shapes: TensorShapes, flat: Tensor) -> dict[str, Tensor]:
    """Every named tensor [n, ...] within rows [n, S], sharing their memory."""
    parts = flat.split([shape.numel() for _, shape in shapes], dim=1)
    return {
        name: part.unflatten(1, tuple(shape)) if shape else part[:, 0]
        for (name, shape), part in zip(shapes, parts, strict=True)
    }


def _by_name(
    shapes: TensorShapes, weights: Tensor, grads: Tensor
) -> Iterator[tuple[str, Tensor, Tensor]]:
    named = named_views(shapes, weights), named_views(shapes, grads)
    return ((name, named[0][name], named[1][name]) for name, _ in shapes)
