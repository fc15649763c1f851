"""A frozen causal language model that runs packed batches with virtual tokens put in.

The model may be a DeepSpeed ZeRO-3 module: embeddings are looked up through
`get_input_embeddings()` and nothing touches a weight directly.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from encoders.errors import PackingError
from encoders.packed.packed_attention import PACKED, LayerStates
from encoders.packed.packing import MIN_POSITIONS, PackedBatch, PackedRow, pack

EXACT_TOLERANCE = 2e-3  # of the largest logit: fp32 runs differ by 1e-5, a wrong model by 1


class PackedModel:
    """Runs `PackedBatch`es through a transformers causal language model; its weights are frozen."""

    def __init__(self, model: Any) -> None:
        model.requires_grad_(False)
        model.eval()
        self.model = model
        self.token_dim: int = model.get_input_embeddings().embedding_dim

    @classmethod
    def load(cls, folder: Path, dtype: torch.dtype = torch.float32) -> "PackedModel":
        """Load a transformers folder with safetensors weights; never reaches for a hub."""
        from transformers import AutoModelForCausalLM

        try:
            model = AutoModelForCausalLM.from_pretrained(
                folder,
                attn_implementation=PACKED,
                dtype=dtype,
                local_files_only=True,
                use_safetensors=True,
            )
        except KeyError as error:
            if error.args != (PACKED,):
                raise
            raise PackingError(
                "this base cannot be run packed: its attention is not exchangeable"
            ) from error
        return cls(model)

    def logits(
        self,
        batch: PackedBatch,
        virtual_tokens: Mapping[str, Tensor],
        cache: Sequence[LayerStates] | None = None,
    ) -> Tensor:
        """Logits [K, vocabulary] at the batch's kept positions.

        `virtual_tokens` holds a table [V, D] for every prompt of the batch; gradients reach it.
        `cache` holds every layer's states of the batch's cached texts (see context_cache.py).
        """
        num_kept = len(batch.kept)
        filler = batch.kept[:1].expand(max(0, MIN_POSITIONS - num_kept))
        kept = torch.cat([batch.kept, filler])
        return self._forward(batch, virtual_tokens, kept, packed_cache=cache)[:num_kept]

    @torch.no_grad()
    def states(self, batch: PackedBatch) -> list[LayerStates]:
        """Every layer's keys and values [N, G, d] of a batch without virtual tokens."""
        record: dict[int, LayerStates] = {}
        self._forward(batch, {}, batch.kept[:1], packed_record=record)
        return [record[layer] for layer in sorted(record)]

    def _forward(
        self,
        batch: PackedBatch,
        virtual_tokens: Mapping[str, Tensor],
        kept: Tensor,
        **attention: object,
    ) -> Tensor:
        output = self.model(
            inputs_embeds=self._embed(batch, virtual_tokens).unsqueeze(0),
            position_ids=batch.position_ids.unsqueeze(0),
            use_cache=False,
            logits_to_keep=kept,
            packed_layout=batch.layout,
            **attention,
        )
        logits: Tensor = output.logits[0]
        return logits

    def _embed(self, batch: PackedBatch, virtual_tokens: Mapping[str, Tensor]) -> Tensor:
        with torch.no_grad():
            embeds: Tensor = self.model.get_input_embeddings()(batch.token_ids)
        if not batch.prompts:
            return embeds
        table = torch.cat([virtual_tokens[name] for name in batch.prompts]).to(embeds.dtype)
        rows = table.index_select(0, batch.virtual_rows)
        return embeds.index_copy(0, batch.virtual_positions, rows)

    @torch.no_grad()
    def plain_logits(self, context: Sequence[int]) -> Tensor:
        """The next token's logits [vocabulary] after one text, by transformers' own attention."""
        self.model.set_attn_implementation("eager")
        try:
            output = self.model(input_ids=torch.tensor([list(context)]), use_cache=False)
        finally:
            self.model.set_attn_implementation(PACKED)
        logits: Tensor = output.logits[0, -1]
        return logits

    @torch.no_grad()
    def check_exact(self, contexts: Sequence[tuple[int, ...]], expected: Sequence[Tensor]) -> None:
        """Raise PackingError unless packed logits after `contexts` equal the `expected` ones."""
        logits = self.logits(pack([PackedRow(None, context) for context in contexts], {}), {})
        for row, plain in zip(logits, expected, strict=True):
            scale = float(plain.abs().max())
            difference = float((row - plain).abs().max()) / max(scale, 1e-6)
            if not difference <= EXACT_TOLERANCE:
                raise PackingError(
                    f"this base ({type(self.model).__name__}) gives other logits when rows are "
                    f"packed: they differ by {difference:.2g} of the largest, at most "
                    f"{EXACT_TOLERANCE:g} is allowed"
                )
