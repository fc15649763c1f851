"""Comparison of a prompt module with PEFT's: equal means to the last bit."""

import torch
from torch import Tensor, nn


def assert_modules_equal(ours: nn.Module, theirs: nn.Module, *inputs: Tensor) -> None:
    """Two prompt modules of equal keys, weights, outputs and gradients, bit for bit."""
    mine, other = ours.state_dict(), theirs.state_dict()
    assert list(mine) == list(other)
    assert all(torch.equal(mine[name], other[name]) for name in mine)
    output, expected = ours(*inputs), theirs(*inputs)
    assert torch.equal(output, expected)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(0))
    (output * weights).sum().backward()
    (expected * weights).sum().backward()
    gradients = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        assert torch.equal(parameter.grad, gradients[name].grad), name  # type: ignore[arg-type]
