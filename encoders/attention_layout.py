"""Who attends to whom in a packed batch, as a few padded buckets of gather indices and masks.

Segments of like size go to one bucket, so that padding stays small. A padding entry repeats an
index of its own segment: what one segment holds, a NaN even, never reaches another.

Shapes: N packed positions; in a bucket, B segments, Q queries and K keys, padded.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Segment:
    """Packed positions `start` to `stop` (exclusive), continuing `parent`."""

    start: int
    stop: int
    parent: "Segment | None" = None

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def depth(self) -> int:
        """Positions before it: the position id of its first token."""
        return 0 if self.parent is None else self.parent.depth + len(self.parent)

    def keys(self) -> list[int]:
        """Packed positions it may attend to: its ancestors', then its own."""
        before = [] if self.parent is None else self.parent.keys()
        return before + list(range(self.start, self.stop))


@dataclass(frozen=True)
class Bucket:
    """Gather indices `query` [B, Q] and `key` [B, K], and `mask` [B, 1, Q, K] (True: attend)."""

    query: Tensor
    key: Tensor
    mask: Tensor


@dataclass(frozen=True)
class AttentionLayout:
    """Buckets over all segments. `restore` [N] finds each position among the buckets' queries."""

    buckets: tuple[Bucket, ...]
    restore: Tensor
    max_length: int

    @classmethod
    def of(cls, segments: Sequence[Segment]) -> "AttentionLayout":
        groups: dict[tuple[int, int], list[Segment]] = {}
        for segment in segments:
            size = _round_up(len(segment)), _round_up(segment.depth + len(segment))
            groups.setdefault(size, []).append(segment)
        restore = torch.empty(sum(len(segment) for segment in segments), dtype=torch.long)
        buckets: list[Bucket] = []
        offset = 0
        for group in groups.values():
            bucket = _bucket(group)
            width = bucket.query.shape[1]
            for index, segment in enumerate(group):
                first = offset + index * width
                restore[segment.start : segment.stop] = torch.arange(first, first + len(segment))
            offset += len(group) * width
            buckets.append(bucket)
        longest = max(segment.depth + len(segment) for segment in segments)
        return cls(tuple(buckets), restore, longest)


def _round_up(length: int) -> int:
    """The next power of two: segments that round alike share a bucket."""
    return 1 << max(length - 1, 0).bit_length()


def _bucket(segments: Sequence[Segment]) -> Bucket:
    num_queries = max(len(segment) for segment in segments)
    num_keys = max(segment.depth + len(segment) for segment in segments)
    query = torch.tensor([_padded(range(s.start, s.stop), num_queries) for s in segments])
    key = torch.tensor([_padded(s.keys(), num_keys) for s in segments])
    depth = torch.tensor([s.depth for s in segments])[:, None, None]
    length = torch.tensor([len(s) for s in segments])[:, None, None]
    step = torch.arange(num_queries)[None, :, None].clamp(max=length - 1)  # padding: as the last
    mask = torch.arange(num_keys)[None, None, :] <= depth + step
    return Bucket(query, key, mask[:, None])


def _padded(indices: Sequence[int], length: int) -> list[int]:
    return [*indices, *[indices[-1]] * (length - len(indices))]
