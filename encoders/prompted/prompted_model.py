"""One frozen base, any number of named prompts of any kind and length at once.

Every row of a batch names its prompt; all rows run in one forward pass and give what each would
give alone and unpadded. The base's weights and modules stay as they are: prompts reach it through
its embeddings, its cache and hooks that live for one call. Not for use by two threads at once.
Shapes: B rows, T input positions, D the base's embedding size.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from encoders.config import PromptLearningConfig
from encoders.errors import PromptError
from encoders.modules.prompt_factory import get_prompt_encoder
from encoders.prompted import prompted_forward, prompted_generation
from encoders.prompted.attached_prompt import AttachedPrompt, NamedPrompts, checked_task_type
from encoders.prompted.base_traits import check_embeddings, embed, read_traits, source_stack
from encoders.prompted.prompt_rows import PromptRows


class PromptedModel(nn.Module):
    """Runs a frozen transformers model with named prompts.

    It starts in the base's mode, and `train()`/`eval()` reach the base too, as in PEFT: dropout in
    the base is the base's choice. Only prompts and their heads are trainable. Raises PromptError
    for a base that no prompt can run on exactly.
    """

    def __init__(self, base: Any) -> None:
        super().__init__()
        base.requires_grad_(False)
        self.base = base
        self.traits = read_traits(base)
        check_embeddings(base, self.traits)
        self.prompts = NamedPrompts()
        self.train(base.training)

    def add_prompt(
        self,
        name: str,
        prompt: object,
        encoder: nn.Module | None = None,
        *,
        num_labels: int | None = None,
        problem_type: str | None = None,
        peft_layout: bool = False,
    ) -> AttachedPrompt:
        """Attach a prompt: a config (completed from the base's, with a new module or `encoder`), or
        a module with `virtual_tokens()` [N, D].

        A classification prompt gets its own trainable head, a copy of the base's, with `num_labels`
        where given; `problem_type` is transformers'. On an encoder-decoder,
        `num_transformer_submodules` 1 puts the prompt before the encoder's text and 2 (the default
        for SEQ_2_SEQ_LM) before the decoder's too; a prefix belongs to the decoder's
        self-attention. `peft_layout` is for an adapter that PEFT 0.21.2 trained there: with 2
        submodules PEFT never uses the decoder's half of P_TUNING and PROMPT_TUNING tables, and
        gives layer i the prefix of layer 2i mod L. Raises PromptError, ConfigError.
        """
        if not isinstance(name, str) or not name or not name.isprintable():
            raise PromptError(f"the name {name!r} is not allowed; it must be printable text")
        if name in self.prompts:
            raise PromptError(f"there is a prompt {name!r} already; remove it first")
        config: Any = prompt
        embeddings = source_stack(self.base, self.traits).get_input_embeddings()
        if isinstance(prompt, nn.Module):
            config, encoder = None, prompt
        elif isinstance(prompt, PromptLearningConfig):
            config = prompt.completed(self.base.config)
        task_type = checked_task_type(config, self.traits)
        encoder = encoder or get_prompt_encoder(config, embeddings)
        attached = AttachedPrompt(name, config, encoder, self.base, self.traits, peft_layout)
        attached.add_heads(self.base, task_type, num_labels, problem_type)
        attached.to(embeddings.weight.device)
        self.prompts[name] = attached.train(self.training)
        return attached

    def remove_prompt(self, name: str) -> None:
        """Detach a prompt; the others stay as they are. Raises PromptError for an unknown name."""
        del self.prompts[name]

    def trainable_parameters(self) -> Iterator[nn.Parameter]:
        """Parameters of the prompts and their heads that require gradient, each once."""
        return (each for each in self.prompts.parameters() if each.requires_grad)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        prompts: str | Sequence[str] | None = None,
        task_ids: Tensor | Sequence[int] | None = None,
        *,
        inputs_embeds: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        keep_virtual_positions: bool = False,
        return_dict: bool | None = None,
        **arguments: Any,
    ) -> Any:
        """The base's outputs for texts `input_ids` [B, T] (or `inputs_embeds` [B, T, D]), of which
        only positions with `attention_mask` 1 count, wherever the padding stands.

        `prompts` names one prompt for all rows or one for each; it may be left out where only one
        is attached. `task_ids` [B] are for multitask prompts. Labels and positions are the input's,
        and so are the outputs: virtual positions are stripped, padding holds 0, and in a mixed
        batch logits of fewer labels end in -inf. With `keep_virtual_positions` outputs are
        [B, V + T, ...]: a row's virtual tokens end where its input begins. Raises PromptError.
        """
        prompted_forward.refuse_unsupported(arguments)
        if inputs_embeds is None:
            if input_ids is None:
                raise PromptError("give input_ids [B, T], or inputs_embeds [B, T, D]")
            inputs_embeds = embed(source_stack(self.base, self.traits), input_ids)
        rows = self._rows(prompts, task_ids, inputs_embeds)
        mask = prompted_forward.checked_mask(attention_mask, inputs_embeds)
        source = prompted_forward.compose_source(self.traits, inputs_embeds, mask, rows)
        decoder = None
        if self.traits.is_encoder_decoder:
            ids = prompted_forward.decoder_ids(self.base, decoder_input_ids, labels)
            decoder = prompted_forward.compose_decoder(
                self.base, self.traits, ids, decoder_attention_mask, rows
            )
        batch = prompted_forward.ComposedBatch(source, decoder)
        call = {**arguments, **batch.arguments(self.traits)}
        if token_type_ids is not None:
            call["token_type_ids"] = source.layout.place(token_type_ids, 0)
        if labels is not None and not rows.has_heads:
            call["labels"] = prompted_forward.language_labels(
                self.traits, labels, batch.result, rows
            )
        raw = prompted_forward.run_base(self.base, self.traits, call, batch.result, rows)
        outputs, loss = batch.outputs(raw), None
        if rows.has_heads:
            loss = prompted_forward.head_loss(
                outputs, rows, mask, labels, start_positions, end_positions
            )
        if keep_virtual_positions:
            outputs = batch.outputs(raw, with_virtual=True)
        if loss is not None:
            outputs = type(outputs)(**{**outputs, "loss": loss})
        return outputs.to_tuple() if return_dict is False else outputs

    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        prompts: str | Sequence[str] | None = None,
        task_ids: Tensor | Sequence[int] | None = None,
        **arguments: Any,
    ) -> Any:
        """What the base's `generate(**arguments)` gives for texts `input_ids` [B, T], each after
        its prompt: `input_ids` as given and new tokens (of an encoder-decoder, the decoder's
        tokens). Greedy, sampling and beams, with and without cache. Raises PromptError."""
        base = self.base
        if not base.can_generate():
            raise PromptError(f"{type(base).__name__} has no language model head to generate with")
        arguments = prompted_generation.supported(base, arguments)
        with torch.no_grad():
            embeds = embed(source_stack(base, self.traits), input_ids)
            if attention_mask is None:
                attention_mask = prompted_generation.implied_mask(base, input_ids, arguments)
            rows = self._rows(prompts, task_ids, embeds)
            mask = prompted_forward.checked_mask(attention_mask, embeds)
            if not self.traits.is_encoder_decoder:
                return prompted_generation.generate_after_text(
                    base, self.traits, input_ids, mask, rows, arguments
                )
            source = prompted_forward.compose_source(self.traits, embeds, mask, rows)
            return prompted_generation.generate_after_encoder(
                base, self.traits, input_ids, source, rows, arguments
            )

    def _rows(
        self,
        prompts: str | Sequence[str] | None,
        task_ids: Tensor | Sequence[int] | None,
        embeds: Tensor,
    ) -> PromptRows:
        """The prompts of the rows of `embeds` [B, T, D]. Raises PromptError."""
        num_rows = len(embeds)
        if embeds.dim() != 3 or not num_rows:
            raise PromptError("the input must be at least one row: input_ids [B, T]")
        if prompts is None:
            if len(self.prompts) != 1:
                raise PromptError(
                    f"{len(self.prompts)} prompts are attached: say by prompts= which to use, of "
                    f"{list(self.prompts)}"
                )
            prompts = next(iter(self.prompts))
        names = [prompts] * num_rows if isinstance(prompts, str) else list(prompts)
        tasks = [None] * num_rows if task_ids is None else torch.as_tensor(task_ids).tolist()
        for what, given in (("prompts", names), ("task_ids", tasks)):
            if not isinstance(given, list) or len(given) != num_rows:
                raise PromptError(f"{what} must be one for each of the {num_rows} rows: {given}")
        return PromptRows([self.prompts[name] for name in names], tasks, embeds.device)
