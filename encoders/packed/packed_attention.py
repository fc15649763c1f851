"""Attention over packed batches, registered with transformers under the name `tutti_packed`.

Runs on unmodified transformers models: a model loaded with `attn_implementation="tutti_packed"`
takes `packed_layout=` in its forward call, and every attention layer hands it on to here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from encoders.errors import PackingError
from encoders.packed.attention_layout import AttentionLayout, HeadRows
from encoders.packed.decoding_layout import DecodingLayout, PoolStep
from encoders.packed.flex_attention import FlexLayout

PACKED = "tutti_packed"
#: Weights of a segment, queries x keys of a group's heads, from where torch's attention is taken.
#: It never holds them all; on several threads its bits may depend on other segments. Below, plain
#: products are up to 1.9 times as fast, and their bits do not (benchmarks/README.md).
LONG_BUCKET = 2**17


@dataclass(frozen=True)
class LayerStates:
    """One layer's cached `key` and `value` [C, G, d], rotated as the layer attends to them."""

    key: Tensor
    value: Tensor


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    *,
    packed_layout: AttentionLayout | FlexLayout | DecodingLayout | None = None,
    packed_cache: Sequence[LayerStates] | None = None,
    packed_record: dict[int, LayerStates] | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend within `packed_layout`. query [1, H, N, d], key and value [1, G, N, d] with G
    dividing H. Returns [1, N, H, d]. Raises PackingError for what it cannot do exactly.

    `packed_cache` holds every layer's cached states; `packed_record` takes this layer's new ones.
    """
    if packed_layout is None:
        raise PackingError("this base does not hand the packed layout on to its attention")
    if softcap is not None:
        raise PackingError("this base caps its attention scores; it cannot be run packed")
    if kwargs.get("s_aux") is not None:
        raise PackingError("this base has attention sinks; it cannot be run packed")
    is_cut = sliding_window is not None and packed_layout.max_length > sliding_window
    window = sliding_window if is_cut else None
    q, k, v = (states[0].transpose(0, 1) for states in (query, key, value))  # [N, heads, d]
    new = LayerStates(k, v)
    if packed_record is not None:
        packed_record[_layer(module)] = LayerStates(k.contiguous(), v.contiguous())
    if isinstance(packed_layout, DecodingLayout):
        scaled = q * (q.shape[-1] ** -0.5 if scaling is None else scaling)
        return _attend_slots(scaled, new, packed_layout, _layer(module), window)[None], None
    cache = packed_cache[_layer(module)] if packed_cache else None
    if isinstance(packed_layout, FlexLayout):
        keys, values = _behind(cache, new)
        return packed_layout.attend(query, keys, values, scaling, window).transpose(1, 2), None
    return _attend_all(q, new, cache, packed_layout, window, scaling, dropout)[None], None


def _layer(module: nn.Module) -> int:
    layer = getattr(module, "layer_idx", None)
    if not isinstance(layer, int):
        raise PackingError("this base does not number its attention layers; texts cannot be cached")
    return layer


def _behind(cache: LayerStates | None, new: LayerStates) -> tuple[Tensor, Tensor]:
    """Keys and values [1, G, C + N, d], the cached ones first."""
    key, value = new.key, new.value
    if cache is not None:
        key = torch.cat([cache.key.to(key.dtype), key])
        value = torch.cat([cache.value.to(value.dtype), value])
    return key.transpose(0, 1)[None], value.transpose(0, 1)[None]


def _attend_all(
    query: Tensor,
    new: LayerStates,
    cache: LayerStates | None,
    layout: AttentionLayout,
    window: int | None,
    scaling: float | None,
    dropout: float,
) -> Tensor:
    """Attention [N, H, d] of all buckets, gathered head by head, as their products read it."""
    num_heads, num_groups = query.shape[1], new.key.shape[1]
    rows = layout.rows(num_heads, num_groups, 0 if cache is None else len(cache.key))
    query_sizes = [num_heads * bucket.query.numel() for bucket in layout.buckets]
    key_sizes = [num_groups * bucket.key_position.numel() for bucket in layout.buckets]
    scaled = query * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    queries = scaled.flatten(0, 1).index_select(0, rows.query).split(query_sizes)
    keys = _gather(new.key, cache.key if cache else None, rows).split(key_sizes)
    values = _gather(new.value, cache.value if cache else None, rows).split(key_sizes)
    attended = [
        _attend(
            q.view(len(bucket.query), num_groups, -1, q.shape[-1]),
            k.view(len(bucket.key), num_groups, -1, k.shape[-1]),
            v.view(len(bucket.key), num_groups, -1, v.shape[-1]),
            bucket.bias_within(window, q.dtype),
            dropout,
        )
        for q, k, v, bucket in zip(queries, keys, values, layout.buckets, strict=True)
    ]
    found = torch.cat([each.flatten(0, 2) for each in attended]).index_select(0, rows.restore)
    return found.view(*query.shape[:2], -1)


def _gather(own: Tensor, cached: Tensor | None, rows: HeadRows) -> Tensor:
    """Keys or values of all buckets, a head a row, from the packed ones [N, G, d] and the cached
    ones [C, G, d]."""
    found: Tensor = _Gather.apply(own, cached, rows)  # type: ignore[no-untyped-call]
    return found


class _Gather(torch.autograd.Function):
    """`_gather`; a gradient goes to the packed ones alone, and the cached ones cost it nothing."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, cached: Tensor | None, rows: HeadRows) -> Tensor:
        ctx.rows, ctx.shape = rows, own.shape
        ctx.num_cached = 0 if cached is None else cached.shape[0] * cached.shape[1]
        table = own if cached is None else torch.cat([cached.to(own.dtype), own])
        return table.flatten(0, 1).index_select(0, rows.key)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (grad,), index = grads, ctx.rows.key
        if ctx.num_cached:
            grad = grad.index_select(0, ctx.rows.own_keys)
            index = index.index_select(0, ctx.rows.own_keys) - ctx.num_cached
        own = grad.new_zeros(ctx.shape)
        own.flatten(0, 1).index_add_(0, index, grad)
        return own, None, None


def _attend_slots(
    query: Tensor, new: LayerStates, layout: DecodingLayout, layer: int, window: int | None
) -> Tensor:
    """A decoding step's attention [N, H, d]: scaled query [N, H, d], one position a sequence, over
    what its slot holds and `new`, which is put there."""
    attended: list[Tensor] = []
    first = 0
    for part in layout.parts:
        here = slice(first, first + len(part))
        part.write(layer, new.key[here], new.value[here])
        attended.append(_attend_slot_pool(query[here], part, layer, window))
        first += len(part)
    filler = attended[0][:1].expand(len(query) - first, -1, -1)
    return torch.cat([*attended, filler])


def _attend_slot_pool(query: Tensor, part: PoolStep, layer: int, window: int | None) -> Tensor:
    """[n, H, d] for the n sequences of one pool. Keys and values are read where they lie."""
    key = part.states.keys[layer][: len(part)]
    value = part.states.values[layer][: len(part)]
    q = query.reshape(*key.shape[:2], -1, key.shape[-1])
    attended = _attend_at_once(q, key, value, part.bias(window, q.dtype), 0.0)
    return attended.flatten(1, 2)


def _attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, dropout: float) -> Tensor:
    """Attention [B, G, r*Q, d] of one bucket: scaled query [B, G, r*Q, d], the r heads of a key
    head behind each other, key and value [B, G, K, d], bias [B, 1, 1, Q, K]: 0, or -inf where it
    may not look. Keys and values are never repeated."""
    repeats = query.shape[2] // bias.shape[3]
    if repeats * bias[0].numel() <= LONG_BUCKET:
        return _attend_at_once(query, key, value, bias, dropout)
    bias = bias.expand(-1, -1, repeats, -1, -1).flatten(2, 3)
    return F.scaled_dot_product_attention(query, key, value, bias, dropout, scale=1.0)


def _attend_at_once(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor, dropout: float
) -> Tensor:
    """Attention [B, G, r*Q, d] with all weights in memory: faster than torch's own while short.
    bias [B, 1, 1, Q, K]."""
    scores = _products(query.flatten(0, 1), key.flatten(0, 1).transpose(1, 2))
    shape = *query.shape[:2], -1, *bias.shape[-2:]
    scores = (scores.view(shape) + bias).view(*query.shape[:3], -1)
    precision = torch.promote_types(scores.dtype, torch.float32)
    weights = scores.softmax(-1, dtype=precision).to(value.dtype)
    weights = F.dropout(weights, dropout) if dropout else weights
    return _products(weights.flatten(0, 1), value.flatten(0, 1)).view(*query.shape[:3], -1)


def _products(left: Tensor, right: Tensor) -> Tensor:
    """Matrix products [n, *, *]. A lone one is made twice: kernels give it other bits alone."""
    if len(left) > 1:
        return torch.bmm(left, right)
    return torch.bmm(left.expand(2, -1, -1), right.expand(2, -1, -1))[:1]


def _no_mask(*args: Any, **kwargs: Any) -> None:
    """The layout says who attends to whom; transformers builds no mask."""


AttentionInterface.register(PACKED, packed_attention)
AttentionMaskInterface.register(PACKED, _no_mask)
