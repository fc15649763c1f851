"""Copies of frozen weights in the order in which oneDNN's kernels read them.

oneDNN puts a weight into that order within each product. A copy that already is in it saves the
time, and takes the weight's bytes once for the forward and once for the backward pass. The
product's bits stay the same, whatever number of rows the order was chosen for.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

_EXPECTED_ROWS = 512  # of a product, as oneDNN is told to choose the order


class _Copy(NamedTuple):
    """`tensor` is None where it would have been too much. `source` tells when a weight changed."""

    source: tuple[int, int]
    tensor: Tensor | None


class WeightCopies:
    """The copies of one base's weights, made when first asked for, at most `max_bytes` of them."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes, self.num_bytes = max_bytes, 0
        self._copies: Any = WeakIdKeyDictionary()  # of a weight: _Copy by is_transposed

    def of(self, weight: Tensor, is_transposed: bool) -> Tensor:
        """What to multiply by in place of `weight`, or of its transpose: a copy, or a view of the
        weight itself where it is no parameter or there is no room."""
        plain = weight.t() if is_transposed else weight
        if not isinstance(weight, nn.Parameter):
            return plain
        held = self._copies.setdefault(weight, {})
        source = (weight.data_ptr(), weight._version)
        copy = held.get(is_transposed)
        if copy is None or copy.source != source:
            copy = held[is_transposed] = _Copy(source, self._make(plain, copy))
        return plain if copy.tensor is None else copy.tensor

    def _make(self, weight: Tensor, old: _Copy | None) -> Tensor | None:
        if old is None or old.tensor is None:
            if self.num_bytes + weight.nbytes > self.max_bytes:
                return None
            self.num_bytes += weight.nbytes
        made: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), _EXPECTED_ROWS)
        return made
