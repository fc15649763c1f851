"""Attention over packed batches, registered with transformers under the name `tutti_packed`.

Runs on unmodified transformers models: a model loaded with `attn_implementation="tutti_packed"`
takes `packed_layout=` in its forward call, and every attention layer hands it on to here.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from encoders.attention_layout import AttentionLayout, Bucket
from encoders.errors import PackingError

PACKED = "tutti_packed"


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    *,
    packed_layout: AttentionLayout | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend within `packed_layout`. query [1, H, N, d], key and value [1, G, N, d] with G
    dividing H. Returns [1, N, H, d]. Raises PackingError for what it cannot do exactly."""
    if packed_layout is None:
        raise PackingError("this base does not hand the packed layout on to its attention")
    if softcap is not None:
        raise PackingError("this base caps its attention scores; it cannot be run packed")
    if kwargs.get("s_aux") is not None:
        raise PackingError("this base has attention sinks; it cannot be run packed")
    if sliding_window is not None and packed_layout.max_length > sliding_window:
        raise PackingError(
            f"a row has {packed_layout.max_length} positions, more than the base's sliding "
            f"window of {sliding_window}; shorten the row"
        )
    q, k, v = (states[0].transpose(0, 1) for states in (query, key, value))  # [N, heads, d]
    parts = [_attend(q, k, v, bucket, scaling, dropout) for bucket in packed_layout.buckets]
    return torch.cat(parts).index_select(0, packed_layout.restore).unsqueeze(0), None


def _attend(
    query: Tensor, key: Tensor, value: Tensor, bucket: Bucket, scaling: float | None, dropout: float
) -> Tensor:
    """Attention of one bucket: [B*Q, H, d]."""
    gathered = F.scaled_dot_product_attention(
        _gather(query, bucket.query, 1),
        _gather(key, bucket.key, query.shape[1] // key.shape[1]),
        _gather(value, bucket.key, query.shape[1] // key.shape[1]),
        attn_mask=bucket.mask,
        dropout_p=dropout,
        scale=scaling,
    )
    return gathered.transpose(1, 2).flatten(0, 1)


def _gather(states: Tensor, index: Tensor, repeats: int) -> Tensor:
    """Rows `index` [B, L] of states [N, G, d] as [B, G*repeats, L, d]."""
    gathered = states.index_select(0, index.flatten()).view(*index.shape, *states.shape[1:])
    gathered = gathered.transpose(1, 2)
    return gathered.repeat_interleave(repeats, dim=1) if repeats > 1 else gathered


def _no_mask(*args: Any, **kwargs: Any) -> None:
    """The layout says who attends to whom; transformers builds no mask."""


AttentionInterface.register(PACKED, packed_attention)
AttentionMaskInterface.register(PACKED, _no_mask)
