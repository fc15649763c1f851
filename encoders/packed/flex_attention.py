"""The attention of a packed batch as one block-sparse kernel: flex attention, for CUDA.

The same rule as attention_layout.py: a position attends to its own segment, causally, and to its
ancestors. A depth-first walk through the forest numbers the segments, so that the ancestors of a
segment are those whose span of the walk it lies in: a few numbers a position say it all.

Shapes: N packed positions, C cached ones; H query heads, G key heads, d their size.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from encoders.packed.attention_layout import Segment, longest_row


@dataclass(frozen=True, eq=False)
class FlexLayout:
    """For cached and then packed positions [C + N]: `enter` and `leave`, the span of the walk of
    their segment and all that continue it, and `position`, counted from the start of the row."""

    enter: Tensor
    leave: Tensor
    position: Tensor
    num_cached: int
    max_length: int
    _masks: dict[int | None, BlockMask] = field(default_factory=dict)

    @classmethod
    def of(cls, segments: Sequence[Segment], device: torch.device) -> "FlexLayout":
        """The layout of `segments`, none of them cached; their ancestors may be."""
        texts = {s.parent for s in segments if s.parent is not None and s.parent.is_cached}
        cached = sorted(texts, key=lambda text: text.start)
        ordered = [*cached, *sorted(segments, key=lambda segment: segment.start)]
        spans = _walk(ordered)
        lengths = torch.tensor([len(segment) for segment in ordered])
        enter, leave = torch.tensor([spans[segment] for segment in ordered]).T
        positions = [torch.arange(s.depth, s.depth + len(s)) for s in ordered]
        return cls(
            enter.repeat_interleave(lengths).to(device),
            leave.repeat_interleave(lengths).to(device),
            torch.cat(positions).to(device),
            sum(map(len, cached)),
            longest_row(segments),
        )

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, scaling: float | None, window: int | None
    ) -> Tensor:
        """query [1, H, N, d], key and value [1, G, C + N, d], the cached ones first, to
        [1, H, N, d]. `window`: how far back a position sees, itself included."""
        if window not in self._masks:
            self._masks[window] = self._block_mask(window)
        run: Any = _compiled() if query.is_cuda else flex_attention
        output: Tensor = run(
            query,
            key,
            value,
            block_mask=self._masks[window],
            scale=scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        return output

    def _block_mask(self, window: int | None) -> BlockMask:
        # One rule for all windows, over tensors alone and without views: whatever else differs
        # from batch to batch would be compiled anew.
        enter, leave, position = self.enter, self.leave, self.position
        walk, last = (each[self.num_cached :].clone() for each in (enter, position))
        first = torch.zeros_like(last) if window is None else last - window + 1

        def attends(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            is_above = (enter[key] <= walk[query]) & (walk[query] < leave[key])
            return is_above & (first[query] <= position[key]) & (position[key] <= last[query])

        size = len(walk), len(enter)
        return create_block_mask(attends, None, None, *size, device=enter.device)


@cache
def _compiled() -> Any:
    # With and without gradients, one block or more of queries and of keys, lengths that happen to
    # be equal: each is compiled once. Beyond the limit torch would run it unfused, without a word.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
    return torch.compile(flex_attention, dynamic=True)


def _walk(segments: Sequence[Segment]) -> dict[Segment, tuple[int, int]]:
    """When a depth-first walk enters each segment, and when it has left all that continue it."""
    children: dict[Segment | None, list[Segment]] = {}
    for segment in segments:
        children.setdefault(segment.parent, []).append(segment)
    spans: dict[Segment, tuple[int, int]] = {}

    def visit(segment: Segment) -> None:
        enter = len(spans)
        spans[segment] = (enter, enter)
        for child in children.get(segment, []):
            visit(child)
        spans[segment] = (enter, len(spans))

    for root in children[None]:
        visit(root)
    return spans
