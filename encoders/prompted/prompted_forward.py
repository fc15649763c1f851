"""The steps of a PromptedModel's forward pass, from checked inputs to the task's loss.

Shapes: B rows, T input positions, D the base's embedding size, Q slots (see row_layout).
"""

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from encoders.config import TaskType
from encoders.errors import PromptError
from encoders.prompted.base_traits import BaseTraits, embed
from encoders.prompted.head_routing import routed_heads
from encoders.prompted.prefix_cache import cache_under_checkpointing, stateless_cache
from encoders.prompted.prompt_rows import ComposedRows, PromptRows, compose
from encoders.prompted.prompted_outputs import at_input_positions
from encoders.prompted.row_layout import Alignment
from encoders.prompted.task_loss import IGNORED, sequence_loss, span_loss, token_loss

#: Arguments of the base that speak of its own rows, which composed ones are not.
_UNSUPPORTED = ("position_ids", "past_key_values", "encoder_outputs", "logits_to_keep")


def refuse_unsupported(arguments: dict[str, Any]) -> None:
    """Raise PromptError for an argument of the base that composed rows cannot honour."""
    for name in _UNSUPPORTED:
        if arguments.pop(name, None) is not None:
            raise PromptError(
                f"a PromptedModel does not take {name!r}: it computes positions and pasts for rows "
                "with virtual tokens itself, and returns all logits"
            )
    if arguments.pop("use_cache", False):
        raise PromptError("forward() keeps no cache, since it holds virtual tokens; use generate()")


def checked_mask(attention_mask: Tensor | None, embeds: Tensor) -> Tensor:
    """Where the texts are: bool [B, T]. Raises PromptError for a mask of another shape."""
    shape = embeds.shape[:2]
    if attention_mask is None:
        return torch.ones(shape, dtype=torch.bool, device=embeds.device)
    if attention_mask.shape != shape:
        raise PromptError(
            f"attention_mask has the shape {tuple(attention_mask.shape)}, but the input has "
            f"{tuple(shape)}: give 1 for text and 0 for padding, without virtual tokens"
        )
    return attention_mask.to(embeds.device).bool()


@dataclass(frozen=True)
class ComposedBatch:
    """The rows of a base's forward: `source` of its decoder or encoder, and `decoder` of an
    encoder-decoder's decoder."""

    source: ComposedRows
    decoder: ComposedRows | None

    @property
    def result(self) -> ComposedRows:
        """The rows that the base's results belong to."""
        return self.decoder or self.source

    def arguments(self, traits: BaseTraits) -> dict[str, Any]:
        """What the base's forward takes of the rows."""
        arguments: dict[str, Any] = {
            "inputs_embeds": self.source.inputs_embeds,
            "attention_mask": self.source.attention_mask,
        }
        if self.decoder is not None:
            arguments["decoder_inputs_embeds"] = self.decoder.inputs_embeds
            arguments["decoder_attention_mask"] = self.decoder.attention_mask
        elif "position_ids" in traits.accepts:
            arguments["position_ids"] = self.source.position_ids + traits.first_position
        if "use_cache" in traits.accepts:
            arguments["use_cache"] = False
        return arguments

    def outputs(self, raw: Any, with_virtual: bool = False) -> Any:
        """The base's outputs at the input's positions."""
        encoder = self.source.layout if self.decoder else None
        return at_input_positions(raw, self.result.layout, encoder, with_virtual)


def compose_source(
    traits: BaseTraits, embeds: Tensor, mask: Tensor, rows: PromptRows
) -> ComposedRows:
    """The rows of a decoder, of an encoder, or of an encoder-decoder's encoder."""
    if traits.is_encoder_decoder:
        return compose(traits, embeds, mask, rows.encoder_tokens, None, Alignment.LEFT)
    alignment = Alignment.LEFT if traits.is_causal else Alignment.FRONT
    if traits.classifies_last and rows.task_type is TaskType.SEQ_CLS:
        alignment = Alignment.RIGHT
    return compose(traits, embeds, mask, rows.encoder_tokens, rows.prefixes, alignment)


def compose_decoder(
    base: Any, traits: BaseTraits, ids: Tensor, mask: Tensor | None, rows: PromptRows
) -> ComposedRows:
    """The rows of an encoder-decoder's decoder."""
    embeds = embed(base.get_decoder(), ids)
    mask = checked_mask(mask, embeds)
    return compose(traits, embeds, mask, rows.decoder_tokens, rows.prefixes, Alignment.LEFT)


def decoder_ids(base: Any, ids: Tensor | None, labels: Tensor | None) -> Tensor:
    """The decoder's input, from `labels` where it is not given. Raises PromptError for neither."""
    if ids is not None:
        return ids
    if labels is None or not hasattr(base, "prepare_decoder_input_ids_from_labels"):
        raise PromptError("an encoder-decoder needs decoder_input_ids, or labels to make them of")
    shifted: Tensor = base.prepare_decoder_input_ids_from_labels(labels=labels)
    return shifted


def language_labels(
    traits: BaseTraits, labels: Tensor, result: ComposedRows, rows: PromptRows
) -> Tensor:
    """Labels [B, Q] of a language model's slots; no virtual token and no padding has one."""
    layout = result.layout
    if labels.shape != layout.text_slots.shape:
        raise PromptError(
            f"labels have the shape {tuple(labels.shape)}, but the input has "
            f"{tuple(layout.text_slots.shape)}: give one for each position, without virtual tokens"
        )
    if traits.is_causal:  # after a prefix nothing predicts the text's first token
        is_first = layout.text_slots == layout.text_slots.amin(1, keepdim=True)
        has_prefix = (rows.prefixes.counts > 0).unsqueeze(1)
        labels = labels.to(is_first.device).masked_fill(is_first & has_prefix, IGNORED)
    return layout.place(labels, IGNORED)


def run_base(
    base: Any, traits: BaseTraits, call: dict[str, Any], result: ComposedRows, rows: PromptRows
) -> Any:
    """The base's outputs, with the rows' prefixes and heads. Raises PromptError for a base that
    ignores a prefix."""
    prefix = result.prefix
    with ExitStack() as stack:
        stack.enter_context(routed_heads(base, rows))
        if prefix is not None:
            _check_takes_prefix(base, traits)
            stack.enter_context(cache_under_checkpointing(base))
            call["past_key_values"] = stateless_cache(prefix, traits.is_encoder_decoder)
        outputs = base(**call, return_dict=True)
    if prefix is not None:
        prefix.check_used(base)
    return outputs


def _check_takes_prefix(base: Any, traits: BaseTraits) -> None:
    needed = {"past_key_values"}
    if not traits.is_causal and not traits.is_encoder_decoder:
        needed.add("position_ids")  # a text's first position is not its first slot
    if missing := sorted(needed - traits.accepts):
        raise PromptError(
            f"{type(base).__name__} takes no {' or '.join(missing)}, which prefix tuning needs; "
            "use P_TUNING or PROMPT_TUNING"
        )


def head_loss(
    outputs: Any,
    rows: PromptRows,
    mask: Tensor,
    labels: Tensor | None,
    start_positions: Tensor | None,
    end_positions: Tensor | None,
) -> Tensor | None:
    """The loss of a task whose heads are the prompts' own; None where no label is given."""
    if rows.task_type is TaskType.QUESTION_ANS:
        if start_positions is None or end_positions is None:
            return None
        return span_loss(outputs.start_logits, outputs.end_logits, start_positions, end_positions)
    if labels is None:
        return None
    if rows.task_type is TaskType.SEQ_CLS:
        return sequence_loss(outputs.logits, labels, rows)
    return token_loss(outputs.logits, labels, mask, rows)
