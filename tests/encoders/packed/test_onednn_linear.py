"""oneDNN's linear layers: the same values and gradients, and who is left alone."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from encoders.packed import onednn_linear
from encoders.packed.onednn_linear import OneDnnLinear
from encoders.packed.weight_copies import WeightCopies


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """The shapes of what oneDNN was given."""
    shapes: list[torch.Size] = []
    multiply = onednn_linear._multiply

    def noted(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        shapes.append(x.shape)
        return multiply(x, weight, bias)

    monkeypatch.setattr(onednn_linear, "_multiply", noted)
    return shapes


def run(call: Any, x: Tensor, inside: bool) -> tuple[Tensor, Tensor]:
    """A call's result and the gradient of x for some loss."""
    x = x.clone().requires_grad_()
    with OneDnnLinear(WeightCopies(0)) if inside else nullcontext():
        result = call(x)
    result.sin().sum().backward()
    assert x.grad is not None
    return result.detach(), x.grad


@pytest.mark.parametrize("shape", [(7, 24), (1, 40, 24), (2, 3, 24)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_frozen_layer_gives_the_same_values_and_gradients(
    shape: tuple[int, ...], bias: bool, products: list[torch.Size]
) -> None:
    layer = nn.Linear(24, 33, bias=bias).requires_grad_(False)
    x = torch.randn(shape)
    for ours, theirs in zip(run(layer, x, True), run(layer, x, False), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert len(products) == 2, "forward and backward"


def test_gpt2s_layers_are_served_as_well(products: list[torch.Size]) -> None:
    from transformers.pytorch_utils import Conv1D

    layer = Conv1D(33, 24).requires_grad_(False)
    nn.init.normal_(layer.bias)
    x = torch.randn(1, 9, 24)
    for ours, theirs in zip(run(layer, x, True), run(layer, x, False), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert len(products) == 2


def test_a_row_has_the_same_bits_whatever_stands_beside_it() -> None:
    weight, x = torch.randn(192, 576), torch.randn(300, 576)
    with OneDnnLinear(WeightCopies(0)):
        among = F.linear(x, weight)
        for first, size in [(0, 2), (5, 3), (17, 16), (100, 65), (3, 299 - 3)]:
            alone = F.linear(x[first : first + size].contiguous(), weight)
            assert torch.equal(alone, among[first : first + size])


def learning(x: Tensor) -> Tensor:
    return F.linear(x, LEARNS)


def in_double(x: Tensor) -> Tensor:
    return F.linear(x.double(), torch.ones(5, 24, dtype=torch.double)).float()


def one_row(x: Tensor) -> Tensor:
    return F.linear(x[:1], torch.ones(5, 24))


LEARNS = nn.Parameter(torch.ones(5, 24))


@pytest.mark.parametrize("call", [learning, in_double, one_row])
def test_others_are_left_alone(call: Any, products: list[torch.Size]) -> None:
    x = torch.randn(6, 24)
    for ours, theirs in zip(run(call, x, True), run(call, x, False), strict=True):
        assert torch.equal(ours, theirs)
    assert not products


def test_a_learning_weight_still_learns() -> None:
    layer = nn.Linear(24, 5)
    with OneDnnLinear(WeightCopies(0)):
        layer(torch.randn(6, 24)).sum().backward()
    assert layer.weight.grad is not None
