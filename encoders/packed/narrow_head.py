"""The language model head on a few tokens alone: a choice among candidates needs no other logits.

The head's module is left as it is; within the context it multiplies by the wanted tokens' rows of
its weight. A head that is no plain linear layer, that somebody wrapped, or that DeepSpeed holds in
parts, gives them all.

Shapes: T wanted tokens.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch.nn.functional as F
from torch import Tensor, nn


@contextmanager
def on_tokens_only(head: nn.Module | None, tokens: Tensor) -> Iterator[bool]:
    """Within the context, `head` gives logits [..., T] of `tokens` [T]; False where it gives them
    all."""
    if type(head) is not nn.Linear or "forward" in vars(head) or hasattr(head.weight, "ds_id"):
        yield False
        return
    weight = head.weight.index_select(0, tokens)
    bias = None if head.bias is None else head.bias.index_select(0, tokens)
    vars(head)["forward"] = lambda states: F.linear(states, weight, bias)
    try:
        yield True
    finally:
        del vars(head)["forward"]
