"""A base's outputs, moved from the slots of composed rows back to the positions of the input."""

from typing import Any

import torch
from torch import Tensor

from encoders.prompted.row_layout import RowLayout

#: Outputs [B, Q, ...] of the rows that are the result's own (a decoder's, if there is one).
_RESULTS = ("logits", "last_hidden_state", "hidden_states", "decoder_hidden_states")
_SPANS = ("start_logits", "end_logits")
_ENCODER = ("encoder_last_hidden_state", "encoder_hidden_states")


def at_input_positions(
    outputs: Any, result: RowLayout, encoder: RowLayout | None = None, with_virtual: bool = False
) -> Any:
    """`outputs` of a transformers model with every position-wise tensor as long as the input.

    Padding holds 0 (-inf in the logits of spans, so that no span starts there). With `with_virtual`
    the virtual positions stand before the input's. A past is dropped: it holds composed rows.
    """

    def moved(name: str, value: Tensor) -> Tensor:
        if name in _RESULTS and value.dim() == 3:  # not the logits [B, C] of whole rows
            return result.take(value, 0.0, with_virtual)
        if name in _SPANS:
            return result.take(value, -torch.inf, with_virtual)
        if encoder is not None and name in _ENCODER:
            return encoder.take(value, 0.0, with_virtual)
        if name in ("attentions", "decoder_attentions"):
            return _move_attention(value, result, result, with_virtual)
        if encoder is not None and name == "encoder_attentions":
            return _move_attention(value, encoder, encoder, with_virtual)
        if encoder is not None and name == "cross_attentions":
            return _move_attention(value, result, encoder, with_virtual)
        return value

    fields: dict[str, Any] = {}
    for name, value in outputs.items():
        if name == "past_key_values":
            continue
        if isinstance(value, tuple):
            fields[name] = tuple(moved(name, each) for each in value)
        else:
            fields[name] = moved(name, value)
    return type(outputs)(**fields)


def _move_attention(
    weights: Tensor, queries: RowLayout, keys: RowLayout, with_virtual: bool
) -> Tensor:
    """Attention weights [B, heads, Q, L] between slots -> [B, heads, T, T] between positions."""
    by_query = queries.take(weights.transpose(1, 2), 0.0, with_virtual).transpose(1, 2)
    return keys.take_keys(by_query, with_virtual)
