"""transformers' own `generate()` on composed rows: its beams, sampling and processors untouched.

While it runs, a hook gives every forward pass of the base the composed rows in place of the bare
text. Token ids, lengths and penalties are those of the text alone. Shapes: B rows, T text
positions, L slots of a composed row, S new tokens.
"""

import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, EncoderDecoderCache

from encoders.errors import PromptError
from encoders.prompted.base_traits import BaseTraits, embed
from encoders.prompted.head_routing import routed_heads
from encoders.prompted.prefix_cache import DecodingCache, stateless_cache
from encoders.prompted.prompt_rows import ComposedRows, PromptRows, compose
from encoders.prompted.row_layout import Alignment

#: Arguments of generate() that would work on something else than the composed rows.
UNSUPPORTED = (
    "inputs",
    "inputs_embeds",
    "past_key_values",
    "encoder_outputs",
    "position_ids",
    "token_type_ids",
    "assistant_model",
    "prompt_lookup_num_tokens",
    "prefill_chunk_size",
    "custom_generate",
)


class _Decoding:
    """The hook: what one call of generate() needs from pass to pass."""

    def __init__(self, base: Any, traits: BaseTraits, rows: PromptRows) -> None:
        self._base, self._traits = base, traits
        self._is_encoder_decoder = traits.is_encoder_decoder
        self._stack = base.get_decoder() if self._is_encoder_decoder else base
        self._prefix = "decoder_" if self._is_encoder_decoder else ""
        self._virtual = rows.decoder_tokens if self._is_encoder_decoder else rows.encoder_tokens
        self._prefixes = rows.prefixes
        self._composed: ComposedRows | None = None
        self._num_text = 0
        self.positions: Tensor | None = None  # of the slots of this pass
        self.counts_slots = False  # the decoder's positions cannot start at different slots

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        ids: Tensor = kwargs.pop(f"{self._prefix}input_ids")
        composed = self._composed or self._compose(ids, kwargs.get(f"{self._prefix}attention_mask"))
        # without a cache transformers may still hand back the last pass's
        past: Cache | None = kwargs.pop("past_key_values", None)
        past = past if kwargs.get("use_cache") else None
        past_length = 0 if past is None else int(past.get_seq_length())
        if past_length:
            num_new = past_length + ids.shape[1] - composed.layout.num_slots
            kwargs[f"{self._prefix}input_ids"] = ids
            num_queries = ids.shape[1]
        else:
            num_new = ids.shape[1] - self._num_text
            new = embed(self._stack, ids[:, self._num_text :])
            kwargs[f"{self._prefix}inputs_embeds"] = torch.cat([composed.inputs_embeds, new], 1)
            num_queries = composed.layout.num_slots + num_new
            past = self._past(composed, past, num_new)
        kwargs["past_key_values"] = past
        mask, positions = composed.attention_mask, composed.position_ids
        order = torch.arange(num_new, device=mask.device)
        positions = torch.cat([positions, mask.sum(1, keepdim=True) + order], dim=1)
        self.positions = positions[:, -num_queries:]
        kwargs[f"{self._prefix}attention_mask"] = nn.functional.pad(mask, (0, num_new), value=1)
        if not self._is_encoder_decoder and "position_ids" in kwargs:
            kwargs["position_ids"] = self.positions
        return args, kwargs

    def _compose(self, ids: Tensor, mask: Tensor | None) -> ComposedRows:
        """Compose at the first pass, when beams have multiplied the rows."""
        times = len(ids) // len(self._virtual.counts)
        self._num_text = ids.shape[1]
        self._composed = compose(
            self._traits,
            embed(self._stack, ids),
            torch.ones_like(ids).bool() if mask is None else mask.bool(),
            self._virtual.repeated(times),
            self._prefixes.repeated(times),
            Alignment.RIGHT,
            may_lead=False,
        )
        if self.counts_slots and not bool(self._composed.layout.mask.all()):
            raise PromptError(
                f"{type(self._base).__name__} cannot generate after decoder prompts of different "
                "lengths at once: generate for each length by itself"
            )
        return self._composed

    def _past(self, composed: ComposedRows, past: Cache | None, num_new: int) -> Cache | None:
        """The past of a pass over whole rows, with the prefixes in it."""
        if composed.prefix is None:
            return past
        if past is None:
            return stateless_cache(composed.prefix.expanded(num_new), self._is_encoder_decoder)
        config = self._base.config.get_text_config(decoder=True)
        decoding = DecodingCache(composed.prefix, config)
        if isinstance(past, EncoderDecoderCache):
            return EncoderDecoderCache(decoding, past.cross_attention_cache)
        return decoding

    def check_prefix_used(self) -> None:
        if self._composed is not None and self._composed.prefix is not None:
            self._composed.prefix.check_used(self._base)


@contextmanager
def composed_decoding(base: Any, traits: BaseTraits, rows: PromptRows) -> Iterator[None]:
    """While open, one call of the base's generate() runs on composed rows."""
    decoding = _Decoding(base, traits, rows)
    with ExitStack() as stack:
        stack.enter_context(routed_heads(base, rows))
        handle = base.register_forward_pre_hook(decoding, with_kwargs=True)
        stack.callback(handle.remove)
        if traits.is_encoder_decoder:
            _hook_positions(decoding, base.get_decoder(), stack)
        yield
    decoding.check_prefix_used()


def _hook_positions(decoding: _Decoding, decoder: Any, stack: ExitStack) -> None:
    """A decoder with a table of positions counts slots; give it each row's own count (BART)."""
    module = getattr(decoder, "embed_positions", None)
    if module is None:
        return
    if "position_ids" not in inspect.signature(module.forward).parameters:
        decoding.counts_slots = True
        return

    def before(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        assert decoding.positions is not None
        return args, {**kwargs, "position_ids": decoding.positions.flatten()}

    def after(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        assert decoding.positions is not None
        return output.view(*decoding.positions.shape, -1)

    stack.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
    stack.callback(module.register_forward_hook(after).remove)


def supported(base: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments of generate() that composed rows can honour; a cache that the base's own settings
    ask for gives way to a dynamic one. Raises PromptError for others."""
    for name in UNSUPPORTED:
        if _setting(base, arguments, name) is not None:
            raise PromptError(
                f"generate() does not take {name!r} with prompts; it takes input_ids, "
                "attention_mask and the base's other generation settings"
            )
    given = arguments.get("cache_implementation")
    given = given or getattr(arguments.get("generation_config"), "cache_implementation", None)
    if given not in (None, "dynamic"):
        raise PromptError(f"cache_implementation is {given!r}; with prompts it must be 'dynamic'")
    if base.generation_config.cache_implementation is None:
        return arguments
    return {**arguments, "cache_implementation": "dynamic"}


def _setting(base: Any, arguments: dict[str, Any], name: str) -> Any:
    """A setting of generate(), as given or as the generation config says."""
    config = arguments.get("generation_config") or base.generation_config
    given = arguments.get(name)
    return getattr(config, name, None) if given is None else given


def implied_mask(base: Any, input_ids: Tensor, arguments: dict[str, Any]) -> Tensor | None:
    """The mask that transformers infers where none is given: padding tokens that end no text."""
    pad, ends = (_setting(base, arguments, name) for name in ("pad_token_id", "eos_token_id"))
    if pad is None or pad in (ends if isinstance(ends, list) else [ends]):
        return None
    return input_ids.ne(pad)


def generate_after_text(
    base: Any,
    traits: BaseTraits,
    input_ids: Tensor,
    mask: Tensor,
    rows: PromptRows,
    arguments: dict[str, Any],
) -> Any:
    """A decoder's generate(), for texts `input_ids` [B, T] padded on any side."""
    order = mask.long().argsort(dim=1, stable=True)  # texts to the right end of their rows
    ids, moved = input_ids.gather(1, order), mask.gather(1, order).long()
    with composed_decoding(base, traits, rows):
        outputs = base.generate(input_ids=ids, attention_mask=moved, **arguments)
    sequences: Tensor = outputs if isinstance(outputs, Tensor) else outputs.sequences
    given = input_ids.repeat_interleave(len(sequences) // len(input_ids), dim=0)
    sequences[:, : input_ids.shape[1]] = given
    return outputs


def generate_after_encoder(
    base: Any,
    traits: BaseTraits,
    input_ids: Tensor,
    source: ComposedRows,
    rows: PromptRows,
    arguments: dict[str, Any],
) -> Any:
    """An encoder-decoder's generate(), with the encoder's rows `source`."""
    wanted = {
        name: bool(_setting(base, arguments, name))
        for name in ("output_attentions", "output_hidden_states")
    }
    encoder_outputs = base.get_encoder()(
        inputs_embeds=source.inputs_embeds,
        attention_mask=source.attention_mask,
        return_dict=True,
        **wanted,
    )
    with composed_decoding(base, traits, rows):
        return base.generate(
            input_ids=input_ids,
            attention_mask=source.attention_mask,
            encoder_outputs=encoder_outputs,
            **arguments,
        )
