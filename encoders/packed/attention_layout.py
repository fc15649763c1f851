"""Who attends to whom in a packed batch, as a few padded buckets of gather indices and masks.

Segments of like size go to one bucket, so that padding stays small. A padding entry repeats an
index of its own segment: what one segment holds, a NaN even, never reaches another. How a segment
is padded, and in which order its bucket comes, depends on its own size alone: its neighbours do
not change a bit of its results.

Shapes: N packed positions; in a bucket, B segments, Q queries, K packed keys and C cached keys,
padded.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property

import torch
from torch import Tensor

from encoders.errors import PackingError


@dataclass(frozen=True)
class Segment:
    """Packed positions `start` to `stop` (exclusive), continuing `parent`.

    A cached segment has no parent; its positions count the cached states, not the packed ones.
    """

    start: int
    stop: int
    parent: "Segment | None" = None
    is_cached: bool = False

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def depth(self) -> int:
        """Positions before it: the position id of its first token."""
        return 0 if self.parent is None else self.parent.depth + len(self.parent)

    def keys(self) -> list[int]:
        """Packed positions it may attend to: its ancestors', then its own."""
        if self.is_cached:
            return []
        before = [] if self.parent is None else self.parent.keys()
        return before + list(range(self.start, self.stop))

    def cached_keys(self) -> range:
        """Cached positions it may attend to: those its row opens with."""
        if self.is_cached:
            return range(self.start, self.stop)
        return range(0) if self.parent is None else self.parent.cached_keys()


@dataclass(frozen=True)
class Bucket:
    """Gather indices `query` [B, Q] and `key` [B, K] into the packed positions, `cached` [B, C]
    into the cached ones, and `mask` [B, 1, Q, C + K] (True: attend). `query_position` [B, Q] and
    `key_position` [B, C + K] count from the start of the row."""

    query: Tensor
    key: Tensor
    cached: Tensor
    mask: Tensor
    query_position: Tensor
    key_position: Tensor

    def bias_within(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """What is added to scores [B, G, r, Q, C + K]: 0, or -inf where a query may not look."""
        if window is not None or self._bias.dtype != dtype:
            return _bias(self.mask_within(window), dtype)
        return self._bias

    @cached_property
    def _bias(self) -> Tensor:
        return _bias(self.mask, torch.get_default_dtype())

    def mask_within(self, window: int | None) -> Tensor:
        """The mask, without keys that stand `window` positions or more before their query."""
        if window is None:
            return self.mask
        distance = self.query_position[:, None, :, None] - self.key_position[:, None, None, :]
        return self.mask & (distance < window)

    def to(self, device: torch.device) -> "Bucket":
        return Bucket(*(getattr(self, field.name).to(device) for field in fields(self)))


@dataclass(frozen=True)
class HeadRows:
    """Where every bucket's entries lie when each position has a row for each of its heads.

    `query` finds the queries of all buckets among the rows [N * H, d], laid out [B, H, Q] in each
    bucket; `key` its keys and values among [(C + N) * G, d], the cached ones first, laid out
    [B, G, C + K]. `own_keys` are the places in `key` that are not cached, `restore` [N * H] finds
    each position's heads among the buckets' queries.
    """

    query: Tensor
    key: Tensor
    own_keys: Tensor
    restore: Tensor


@dataclass(frozen=True)
class AttentionLayout:
    """Buckets over all segments. `restore` [N] finds each position among the buckets' queries."""

    buckets: tuple[Bucket, ...]
    restore: Tensor
    max_length: int

    @classmethod
    def of(cls, segments: Sequence[Segment]) -> "AttentionLayout":
        """The layout of `segments`, none of them cached; their ancestors may be."""
        groups: dict[tuple[int, int, int], list[Segment]] = {}
        for segment in segments:
            groups.setdefault(_padded_sizes(segment), []).append(segment)
        restore = torch.empty(sum(len(segment) for segment in segments), dtype=torch.long)
        buckets: list[Bucket] = []
        offset = 0
        for sizes, group in sorted(groups.items(), key=lambda item: item[0]):
            bucket = _bucket(group, *sizes)
            width = bucket.query.shape[1]
            for index, segment in enumerate(group):
                first = offset + index * width
                restore[segment.start : segment.stop] = torch.arange(first, first + len(segment))
            offset += len(group) * width
            buckets.append(bucket)
        return cls(tuple(buckets), restore, longest_row(segments))

    def rows(self, num_heads: int, num_groups: int, num_cached: int) -> HeadRows:
        """For layers of so many query and key heads; the same tensors every time. Raises
        PackingError where the layout has cached positions that are not among `num_cached`."""
        wanted = num_heads, num_groups, num_cached
        if wanted not in self._rows:
            self._rows[wanted] = self._make_rows(*wanted)
        return self._rows[wanted]

    @cached_property
    def _rows(self) -> dict[tuple[int, int, int], HeadRows]:
        return {}

    def _make_rows(self, num_heads: int, num_groups: int, num_cached: int) -> HeadRows:
        if any(bool((bucket.cached >= num_cached).any()) for bucket in self.buckets):
            raise PackingError(
                "the layout has cached positions, but no states of them came with it"
            )
        queries = [_by_head(bucket.query, num_heads) for bucket in self.buckets]
        keys = [
            _by_head(torch.cat([bucket.cached, bucket.key + num_cached], dim=1), num_groups)
            for bucket in self.buckets
        ]
        places: list[Tensor] = []
        offset = 0
        for bucket in self.buckets:
            num_rows, width = bucket.query.shape
            shape = num_rows, num_heads, width
            count = num_rows * num_heads * width
            place = torch.arange(offset, offset + count, device=bucket.query.device).view(shape)
            places.append(place.transpose(1, 2).flatten(0, 1))
            offset += count
        key = torch.cat(keys)
        return HeadRows(
            query=torch.cat(queries),
            key=key,
            own_keys=(key >= num_cached * num_groups).nonzero()[:, 0],
            restore=torch.cat(places).index_select(0, self.restore).flatten(),
        )

    def to(self, device: torch.device) -> "AttentionLayout":
        buckets = tuple(bucket.to(device) for bucket in self.buckets)
        return AttentionLayout(buckets, self.restore.to(device), self.max_length)


def _by_head(index: Tensor, num_heads: int) -> Tensor:
    """Positions [B, L] as the rows of their heads, [B, heads, L] flattened."""
    heads = torch.arange(num_heads, device=index.device)[None, :, None]
    return (index[:, None, :] * num_heads + heads).flatten()


def _bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    bias = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    return bias.masked_fill_(~mask, -torch.inf).unsqueeze(1)


def longest_row(segments: Sequence[Segment]) -> int:
    """Positions of the longest row that `segments` form with their ancestors."""
    return max(segment.depth + len(segment) for segment in segments)


def _padded_sizes(segment: Segment) -> tuple[int, int, int]:
    """Its queries, packed keys and cached keys, padded."""
    return (
        _padded_size(len(segment)),
        _padded_size(len(segment.keys())),
        _padded_size(len(segment.cached_keys())),
    )


def _padded_size(length: int) -> int:
    """The next of 0, 1, 2, 3, 4, 6, 8, 12, 16, 24, ...: segments that pad alike share a bucket."""
    power = 1 << max(length - 1, 0).bit_length()
    return 0 if length == 0 else power * 3 // 4 if length <= power * 3 // 4 else power


def _bucket(
    segments: Sequence[Segment], num_queries: int, num_keys: int, num_cached: int
) -> Bucket:
    """Segments padded to the given sizes; either all of them have cached keys or none has."""
    keys = [segment.keys() for segment in segments]
    cached_keys = [segment.cached_keys() for segment in segments]
    cached_length = torch.tensor([len(each) for each in cached_keys])[:, None]
    before = torch.tensor([len(k) - len(s) for k, s in zip(keys, segments, strict=True)])[:, None]
    length = torch.tensor([len(segment) for segment in segments])[:, None]
    query = before + torch.arange(num_queries).clamp(max=length - 1)  # padding: as the last
    key = torch.arange(num_keys).expand(len(segments), -1)
    cached = torch.arange(num_cached).expand(len(segments), -1)
    context = (cached < cached_length)[:, None].expand(-1, num_queries, -1)
    own = key[:, None] <= query[:, :, None]
    return Bucket(
        query=torch.tensor([_padded(range(s.start, s.stop), num_queries) for s in segments]),
        key=torch.tensor([_padded(each, num_keys) for each in keys]),
        cached=torch.tensor(
            [_padded(each, num_cached) for each in cached_keys], dtype=torch.long
        ).reshape(len(segments), num_cached),
        mask=torch.cat([context, own], dim=-1)[:, None],
        query_position=cached_length + query,
        key_position=torch.cat([cached, cached_length + key], dim=-1),
    )


def _padded(indices: Sequence[int], length: int) -> list[int]:
    return [*indices, *[indices[-1]] * (length - len(indices))] if length else []
