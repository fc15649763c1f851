"""Prefixes as transformers caches: every layer's keys and values stand in slots of the rows.

A prefix either leads the whole batch, as a past that needs no queries, or takes the place of the
keys and values that its slots' placeholders would have. So rows of any prompts share one forward.
`StatelessCache` keeps nothing, which makes it safe to recompute under gradient checkpointing;
`DecodingCache` grows. Shapes: B rows, L slots, R leading slots, Q = L - R, G key heads, d their
size, N table rows.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, EncoderDecoderCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer
from transformers.modeling_layers import GradientCheckpointingLayer

from encoders.errors import PromptError


class PrefixStates:
    """The prefixes of a batch: a table [N, layers, 2, G, d] and its row for each slot [B, L],
    counted from 1; 0 is a slot without a prefix."""

    def __init__(self, table: Tensor, slot_rows: Tensor, num_leading: int) -> None:
        self.num_layers = table.shape[1]
        self.num_leading = num_leading
        self._table, self._slot_rows = table, slot_rows
        is_prefix = slot_rows[:, num_leading:] > 0
        self._is_inner = is_prefix[:, None, :, None] if bool(is_prefix.any()) else None
        rows = slot_rows if self._is_inner is not None else slot_rows[:, :num_leading]
        table = torch.cat([torch.zeros_like(table[:1]), table])
        found = table.index_select(0, rows.flatten()).view(
            *rows.shape, 2 * self.num_layers, *table.shape[3:]
        )
        # keys and values [B, G, slots, d] of every layer in turn
        self._states = found.permute(2, 0, 3, 1, 4).unbind(0)
        self._seen: set[int] = set()

    def expanded(self, num_new: int) -> "PrefixStates":
        """The same, with `num_new` slots more that hold no prefix."""
        rows = nn.functional.pad(self._slot_rows, (0, num_new))
        states = PrefixStates(self._table, rows, self.num_leading)
        states._seen = self._seen
        return states

    def complete(self, keys: Tensor, values: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values [B, G, L, d] of all slots, from those [B, G, Q, d] that a layer made.

        Raises PromptError where the base's key heads are not the prefix's.
        """
        self._seen.add(layer)
        shape, expected = self._table.shape[3:], (keys.shape[1], keys.shape[3])
        if shape != expected:
            raise PromptError(
                f"the prefix has {shape[0]} key heads of size {shape[1]}, but the base's layer "
                f"{layer} has {expected[0]} of {expected[1]}: give num_attention_heads="
                f"{expected[0]} and token_dim={expected[0] * expected[1]}"
            )
        prefix_keys, prefix_values = self._states[2 * layer : 2 * layer + 2]
        return self._put(prefix_keys, keys), self._put(prefix_values, values)

    def _put(self, prefix: Tensor, states: Tensor) -> Tensor:
        prefix = prefix.to(states)
        if self._is_inner is not None:
            inner = prefix[:, :, self.num_leading :]
            states = torch.where(self._is_inner.to(states.device), inner, states)
        return torch.cat([prefix[:, :, : self.num_leading], states], dim=2)

    def check_used(self, base: nn.Module) -> None:
        """Raise PromptError unless every layer asked for its prefix: none is ever ignored."""
        missing = sorted(set(range(self.num_layers)) - self._seen)
        if missing:
            raise PromptError(
                f"{type(base).__name__} did not use the prefix in its layers {missing}: prefix "
                "tuning does not work on this base; use P_TUNING or PROMPT_TUNING"
            )


class _StatelessLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """One layer of a StatelessCache."""

    def __init__(self, prefix: PrefixStates, layer: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._prefix, self._layer = prefix, layer

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        return self._prefix.complete(key_states, value_states, self._layer)

    def get_seq_length(self) -> int:
        return self._prefix.num_leading


class StatelessCache(Cache):
    """A past of prefixes that keeps nothing of what it is given: for one forward pass."""

    def __init__(self, prefix: PrefixStates) -> None:
        super().__init__(layers=[_StatelessLayer(prefix, i) for i in range(prefix.num_layers)])


class _NothingKept(Cache):
    """A past that hands back what it is given."""

    def __init__(self) -> None:
        super().__init__(layer_class_to_replicate=DynamicLayer)

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        return key_states, value_states


class _NeverUpdated(dict[int, bool]):
    """Forgets that a layer stored its cross-attention, since nothing is stored."""

    def __setitem__(self, layer: int, is_updated: bool) -> None:
        pass


def stateless_cache(prefix: PrefixStates, is_encoder_decoder: bool) -> Cache:
    """A past for one forward pass; in an encoder-decoder, of the decoder's self-attention."""
    if not is_encoder_decoder:
        return StatelessCache(prefix)
    cache = EncoderDecoderCache(StatelessCache(prefix), _NothingKept())
    cache.is_updated = _NeverUpdated()
    return cache


class DecodingCache(DynamicCache):
    """A past that grows while text is generated; its first update puts the prefixes in."""

    def __init__(self, prefix: PrefixStates, config: Any) -> None:
        super().__init__(config=config)
        self._prefix = prefix

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if self.get_seq_length(layer_idx) == 0:
            key_states, value_states = self._prefix.complete(key_states, value_states, layer_idx)
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)


@contextmanager
def cache_under_checkpointing(base: nn.Module) -> Iterator[None]:
    """Let the base's layers keep a StatelessCache under gradient checkpointing.

    transformers drops any cache there, in the layers and (GPT-2) in the stack around them, since
    most caches would be updated again by the recomputation. Raises PromptError for reentrant
    checkpointing, which loses gradients that enter by a cache.
    """
    active = [each for each in base.modules() if getattr(each, "gradient_checkpointing", False)]
    active = [module for module in active if module.training]
    layers = [module for module in active if isinstance(module, GradientCheckpointingLayer)]
    stacks = [module for module in active if isinstance(module, PreTrainedModel)]
    for layer in layers:
        # the arguments that transformers bound to its checkpointing function
        bound = getattr(layer._gradient_checkpointing_func, "keywords", {})
        if bound.get("use_reentrant", False):
            raise PromptError(
                "prefix tuning needs gradient checkpointing with use_reentrant=False, which is "
                "transformers' default: a reentrant one gives the prefix no gradient"
            )
    try:
        for layer in layers:
            layer._can_checkpoint_with_cache = True
        for stack in stacks:
            stack.gradient_checkpointing = False
        yield
    finally:
        for layer in layers:
            del layer._can_checkpoint_with_cache
        for stack in stacks:
            stack.gradient_checkpointing = True
