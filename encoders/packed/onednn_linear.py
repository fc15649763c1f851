"""Linear layers of a frozen base by oneDNN's matrix kernels, where they are the faster ones.

torch multiplies float32 matrices on a processor by MKL, which on AMD's is about a tenth slower than
oneDNN (benchmarks/README.md); both are in torch. A row's result has the same bits from two rows up,
whatever stands beside it. Weights that learn, other devices and other precisions are left alone,
and so is a base under ZeRO-3, whose linear layers are DeepSpeed's own. Weights are multiplied by
their copies in oneDNN's order, as far as these have room (weight_copies.py).
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from encoders.packed.weight_copies import WeightCopies


class OneDnnLinear(TorchFunctionMode):
    """While it is entered, `F.linear` and `torch.addmm` (GPT-2's layers) take oneDNN's kernels."""

    def __init__(self, copies: WeightCopies) -> None:
        super().__init__()
        self._copies = copies

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is F.linear and not kwargs:
            x, weight, bias = (*args, None)[:3]
            if _is_served(x, weight, bias):
                return _Linear.apply(x, weight, bias, False, self._copies)  # type: ignore[no-untyped-call]
        elif func is torch.addmm and not kwargs:
            bias, x, weight = args
            if bias.dim() == 1 and _is_served(x, weight, bias):
                return _Linear.apply(x, weight, bias, True, self._copies)  # type: ignore[no-untyped-call]
        return func(*args, **(kwargs or {}))


class _Linear(torch.autograd.Function):
    """x [..., in] times `weight` [out, in], or [in, out] if it `is_transposed`, + bias [out]; a
    gradient goes to x alone."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        is_transposed: bool,
        copies: WeightCopies,
    ) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.is_transposed, ctx.copies = is_transposed, copies
        return _multiply(x, copies.of(weight, is_transposed), bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        (weight,) = ctx.saved_tensors
        across = ctx.copies.of(weight, not ctx.is_transposed)
        return _multiply(grads[0].contiguous(), across, None), None, None, None, None


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return result


def _is_served(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    return (
        torch.backends.mkldnn.is_available()
        and x.dtype == weight.dtype == torch.float32
        and x.device.type == weight.device.type == "cpu"
        and x.numel() > x.shape[-1]
        and not weight.requires_grad
        and not (bias is not None and bias.requires_grad)
    )
