"""Copies of weights in oneDNN's order: the same bits, within their bound, never an old weight."""

import gc
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from encoders.packed.onednn_linear import OneDnnLinear
from encoders.packed.packed_model import PackedModel
from encoders.packed.packing import PackedRow, pack
from encoders.packed.weight_copies import WeightCopies
from tests.tiny import make_tiny_base

PLENTY = 1 << 30


def conv1d(num_out: int, num_in: int) -> nn.Module:
    from transformers.pytorch_utils import Conv1D

    layer: nn.Module = Conv1D(num_out, num_in)
    nn.init.normal_(layer.bias)  # type: ignore[arg-type]
    return layer


def run(layer: nn.Module, x: Tensor, copies: WeightCopies) -> tuple[Tensor, Tensor]:
    """A layer's result and the gradient of x for some loss."""
    x = x.clone().requires_grad_()
    with OneDnnLinear(copies):
        result = layer(x)
    result.sin().sum().backward()
    assert x.grad is not None
    return result.detach(), x.grad


def frozen(layer: nn.Module) -> nn.Module:
    return layer.requires_grad_(False)


@pytest.mark.parametrize("make", [lambda o, i: nn.Linear(i, o), conv1d])
@pytest.mark.parametrize(("num_out", "num_in"), [(33, 24), (192, 576), (576, 1536)])
def test_values_and_gradients_have_the_same_bits(make: Any, num_out: int, num_in: int) -> None:
    layer, copies = frozen(make(num_out, num_in)), WeightCopies(PLENTY)
    for num_rows in (2, 3, 17, 64, 129, 700):
        x = torch.randn(num_rows, num_in)
        plain, copied = run(layer, x, WeightCopies(0)), run(layer, x, copies)
        assert all(map(torch.equal, plain, copied))
    assert copies.num_bytes == 2 * 4 * num_out * num_in  # one forward, one backward


def test_a_row_has_the_same_bits_whatever_stands_beside_it() -> None:
    layer, copies = frozen(nn.Linear(576, 192)), WeightCopies(PLENTY)
    x = torch.randn(300, 576)
    with OneDnnLinear(copies):
        among = layer(x)
        for first, size in [(0, 2), (5, 3), (17, 16), (100, 65), (3, 296)]:
            alone = layer(x[first : first + size].contiguous())
            assert torch.equal(alone, among[first : first + size])
    assert copies.num_bytes > 0


def test_what_has_no_room_is_multiplied_as_it_is() -> None:
    layers = [frozen(nn.Linear(24, 24)) for _ in range(3)]
    x, copies = torch.randn(5, 24), WeightCopies(3 * 4 * 24 * 24)
    for _ in range(2):
        for layer in layers:
            assert all(map(torch.equal, run(layer, x, WeightCopies(0)), run(layer, x, copies)))
    assert copies.num_bytes == copies.max_bytes


@pytest.mark.parametrize("change", ["in place", "another tensor"])
def test_a_weight_that_changes_is_copied_again(change: str) -> None:
    layer, copies = frozen(nn.Linear(24, 33)), WeightCopies(PLENTY)
    x = torch.randn(5, 24)
    before, _ = run(layer, x, copies)
    with torch.no_grad():
        if change == "in place":
            layer.weight.mul_(2)
        else:
            layer.weight.data = layer.weight * 2
    changed = run(layer, x, copies)
    assert not torch.equal(changed[0], before)
    assert all(map(torch.equal, changed, run(layer, x, WeightCopies(0))))
    assert copies.num_bytes == 2 * 4 * 24 * 33


def test_only_parameters_are_copied() -> None:
    copies = WeightCopies(PLENTY)
    with OneDnnLinear(copies):
        torch.nn.functional.linear(torch.randn(5, 24), torch.randn(33, 24))
    gc.collect()
    assert copies.num_bytes == 0


def test_a_base_gives_the_same_logits_and_gradients(tmp_path: Any) -> None:
    model = PackedModel.load(make_tiny_base(tmp_path))
    batch = pack([PackedRow("a", (-1, -2, 5, 6, 7)), PackedRow("a", (-1, -2, 9))], {"a": 2})
    table = torch.randn(2, model.token_dim)

    def logits_and_gradient() -> tuple[Tensor, Tensor]:
        virtual = table.clone().requires_grad_()
        logits = model.logits(batch, {"a": virtual})
        logits.sin().sum().backward()
        assert virtual.grad is not None
        return logits.detach(), virtual.grad

    plain = logits_and_gradient()
    model.keep_weight_copies(PLENTY)
    assert all(map(torch.equal, plain, logits_and_gradient()))
    assert all(map(torch.equal, plain, logits_and_gradient()))
