"""A frozen causal language model that runs packed batches with virtual tokens put in.

The model may be a DeepSpeed ZeRO-3 module: embeddings are looked up through
`get_input_embeddings()` and nothing touches a weight directly.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from encoders.errors import PackingError
from encoders.packed.decoding_layout import DecodingLayout
from encoders.packed.last_layer import on_rows_only, row_wise_modules
from encoders.packed.narrow_head import on_tokens_only
from encoders.packed.onednn_linear import OneDnnLinear
from encoders.packed.packed_attention import PACKED, LayerStates
from encoders.packed.packing import PackedBatch, PackedRow, pack
from encoders.packed.weight_copies import WeightCopies

EXACT_TOLERANCE = 2e-3  # of the largest logit: fp32 runs differ by 1e-5, a wrong model by 1
#: Or of the dtype's own rounding, where that is more: in bf16 transformers' own two attentions
#: differ by up to 0.2 (SmolLM2), and the packed one no more.
EXACT_STEPS = 64
#: transformers swaps parts of torch while it loads: two loads at once leave them swapped for good.
_ONE_AT_A_TIME = threading.Lock()


class PackedModel:
    """Runs `PackedBatch`es through a transformers causal language model; its weights are frozen.

    Batches may come on any device. `can_cache` tells whether it gives and takes `states`;
    `fallback_reason` says why the base is not run packed (see padded_model.py), None where it is.
    Every pass, whatever it is for, runs the same modules in the same order, and `before_pass` is
    called first: ranks that hold the base together (ZeRO-3) come in step there.
    """

    can_cache: ClassVar[bool] = True
    fallback_reason: str | None = None

    def __init__(self, model: Any) -> None:
        model.requires_grad_(False)
        model.eval()
        self.model = model
        self.before_pass: Callable[[], None] = _no_one_to_wait_for
        self.token_dim: int = model.get_input_embeddings().embedding_dim
        self._copies = WeightCopies(0)
        self._can_narrow_head = True

    @classmethod
    def load(cls, folder: Path, dtype: torch.dtype = torch.float32) -> "PackedModel":
        """Load a transformers folder with safetensors weights; never reaches for a hub."""
        return cls(load_frozen(folder, PACKED, dtype))

    def keep_weight_copies(self, max_bytes: int) -> None:
        """Have weights copied for faster products on a processor: see weight_copies.py."""
        self._copies = WeightCopies(max_bytes)

    @property
    def device(self) -> torch.device:
        """Where the model's weights are, and the logits it gives."""
        device: torch.device = self.model.get_input_embeddings().weight.device
        return device

    def logits(
        self,
        batch: PackedBatch,
        virtual_tokens: Mapping[str, Tensor],
        cache: Sequence[LayerStates] | None = None,
        record: dict[int, LayerStates] | None = None,
    ) -> Tensor:
        """Logits [K, vocabulary] at the batch's kept positions; the last layer runs on those alone.

        `virtual_tokens` holds a table [V, D] for every prompt of the batch; gradients reach it.
        `cache` holds every layer's states of the batch's cached texts (see context_cache.py).
        `record` takes every layer's new states [N, G, d], by the layer's number.
        """
        batch = batch.to(self.device)
        rows = torch.cat([batch.kept, batch.filler])
        with on_rows_only(row_wise_modules(self.model), rows, len(batch.token_ids)):
            logits = self._forward(
                batch, virtual_tokens, rows, packed_cache=cache, packed_record=record
            )
        return logits[: len(batch.kept)]

    def label_logits(
        self,
        batch: PackedBatch,
        virtual_tokens: Mapping[str, Tensor],
        cache: Sequence[LayerStates] | None = None,
    ) -> Tensor:
        """Logits [L] of the batch's labels: those that `logits` gives, but where it can the head
        runs on these tokens alone. Arguments as in `logits`."""
        batch = batch.to(self.device)
        tokens, columns = batch.label_ids.unique(return_inverse=True)
        head = self.model.get_output_embeddings() if self._can_narrow_head else None
        with on_tokens_only(head, tokens) as is_narrow:
            logits = self.logits(batch, virtual_tokens, cache)
        return logits[batch.label_kept, columns if is_narrow else batch.label_ids]

    def hidden(
        self,
        batch: PackedBatch,
        virtual_tokens: Mapping[str, Tensor],
        cache: Sequence[LayerStates] | None = None,
    ) -> Tensor:
        """Last hidden states [K, D] at the batch's kept positions, as the head would be given them:
        transformers' `last_hidden_state`, behind the final norm. Arguments as in `logits`."""
        batch = batch.to(self.device)
        rows = torch.cat([batch.kept, batch.filler])
        with (
            on_rows_only(row_wise_modules(self.model), rows, len(batch.token_ids)),
            last_hidden(self.model) as seen,
        ):
            self._forward(batch, virtual_tokens, batch.kept[:1], packed_cache=cache)
        return seen[0][0].index_select(0, batch.kept)

    @torch.no_grad()
    def states(
        self, batch: PackedBatch, virtual_tokens: Mapping[str, Tensor] | None = None
    ) -> list[LayerStates]:
        """Every layer's keys and values [N, G, d] of a batch; `virtual_tokens` as in `logits`."""
        record: dict[int, LayerStates] = {}
        batch = batch.to(self.device)
        self._forward(batch, virtual_tokens or {}, batch.kept[:1], packed_record=record)
        return [record[layer] for layer in sorted(record)]

    @cached_property
    def state_shapes(self) -> tuple[tuple[torch.Size, torch.Size], ...]:
        """What every layer keeps of a position: a key's and a value's heads and their size."""
        layers = self.states(pack([PackedRow(None, (0,))], {}))
        return tuple((layer.key.shape[1:], layer.value.shape[1:]) for layer in layers)

    @torch.no_grad()
    def step_logits(self, token_ids: Tensor, positions: Tensor, layout: DecodingLayout) -> Tensor:
        """Logits [N, vocabulary] of a decoding step: one token [N] of each sequence, at its
        position [N]. The sequences' slots take the new states."""
        self.before_pass()
        token_ids, positions = token_ids.to(self.device), positions.to(self.device)
        with OneDnnLinear(self._copies) if self.device.type == "cpu" else nullcontext():
            output = self.model(
                inputs_embeds=self.model.get_input_embeddings()(token_ids)[None],
                position_ids=positions[None],
                use_cache=False,
                packed_layout=layout,
            )
        logits: Tensor = output.logits[0]
        return logits

    def _forward(
        self,
        batch: PackedBatch,
        virtual_tokens: Mapping[str, Tensor],
        kept: Tensor,
        **arguments: object,
    ) -> Tensor:
        """Logits of a batch on its device at the positions `kept`."""
        with OneDnnLinear(self._copies) if self.device.type == "cpu" else nullcontext():
            output = self.model(
                inputs_embeds=self._embed(batch, virtual_tokens).unsqueeze(0),
                position_ids=batch.position_ids.unsqueeze(0),
                use_cache=False,
                logits_to_keep=kept,
                packed_layout=batch.layout,
                **arguments,
            )
        logits: Tensor = output.logits[0]
        return logits

    def _embed(self, batch: PackedBatch, virtual_tokens: Mapping[str, Tensor]) -> Tensor:
        """Where the pass of a batch begins."""
        self.before_pass()
        with torch.no_grad():
            embeds: Tensor = self.model.get_input_embeddings()(batch.token_ids)
        if not batch.prompts:
            return embeds
        table = torch.cat([virtual_tokens[name] for name in batch.prompts]).to(embeds)
        rows = table.index_select(0, batch.virtual_rows)
        return embeds.index_copy(0, batch.virtual_positions, rows)

    @torch.no_grad()
    def plain_logits(self, context: Sequence[int]) -> Tensor:
        """The next token's logits [vocabulary] after one text, by transformers' own attention."""
        self.model.set_attn_implementation("eager")
        try:
            return self._plain_logits(context)
        finally:
            self.model.set_attn_implementation(PACKED)

    def _plain_logits(self, context: Sequence[int]) -> Tensor:
        ids = torch.tensor([list(context)], device=self.device)
        logits: Tensor = self.model(input_ids=ids, use_cache=False).logits[0, -1]
        return logits

    @torch.no_grad()
    def check_exact(self, contexts: Sequence[tuple[int, ...]], expected: Sequence[Tensor]) -> None:
        """Raise PackingError unless logits after `contexts`, run together, equal the `expected`.
        A head that does not give the same on a few tokens alone is always run whole."""
        batch = pack([PackedRow(None, context) for context in contexts], {})
        self._check_layers(batch)
        self._can_narrow_head = self._narrows_exactly(contexts, expected)
        for row, plain in zip(self.logits(batch, {}), expected, strict=True):
            difference, limit = _difference(row, plain), _exact_within(plain.dtype)
            if not difference <= limit:
                raise PackingError(
                    f"this base ({type(self.model).__name__}) gives other logits when rows are "
                    f"run together: they differ by {difference:.2g} of the largest, at most "
                    f"{limit:g} is allowed"
                )

    def _narrows_exactly(
        self, contexts: Sequence[tuple[int, ...]], expected: Sequence[Tensor]
    ) -> bool:
        """Whether the head gives what is `expected` after `contexts` on a few tokens alone."""
        tokens = [0, expected[0].numel() // 2, expected[0].numel() - 1]
        rows = [
            PackedRow(None, context, tuple((token,) for token in tokens)) for context in contexts
        ]
        try:
            found = self.label_logits(pack(rows, {}), {}).view(len(rows), -1)
        except (IndexError, RuntimeError, ValueError):
            return False  # the base does more with its logits than any head can be asked for
        return all(
            bool(
                (row - plain[tokens]).abs().max() <= _exact_within(plain.dtype) * plain.abs().max()
            )
            for row, plain in zip(found, expected, strict=True)
        )

    def _check_layers(self, batch: PackedBatch) -> None:
        """Raise PackingError if a layer never asked for the layout: it may mix rows by less than
        the tolerance shows."""
        expected = self.model.config.get_text_config().num_hidden_layers
        if (found := len(self.states(batch))) != expected:
            raise PackingError(
                f"{expected - found} of the {expected} layers of this base "
                f"({type(self.model).__name__}) are not reached by the packed attention"
            )


def _no_one_to_wait_for() -> None:
    return None


def _difference(found: Tensor, expected: Tensor) -> float:
    """The largest difference, of the largest expected value."""
    return float((found - expected).abs().max()) / max(float(expected.abs().max()), 1e-6)


def _exact_within(dtype: torch.dtype) -> float:
    """How far logits may differ, of the largest."""
    return max(EXACT_TOLERANCE, EXACT_STEPS * torch.finfo(dtype).eps)


@contextmanager
def last_hidden(model: Any) -> Iterator[list[Tensor]]:
    """Within the context, the list takes the decoder's `last_hidden_state` of each pass."""
    seen: list[Tensor] = []

    def see(module: nn.Module, args: object, output: Any) -> None:
        seen.append(output.last_hidden_state)

    hook = model.base_model.register_forward_hook(see)
    try:
        yield seen
    finally:
        hook.remove()


def load_frozen(folder: Path, attention: str, dtype: torch.dtype) -> Any:
    """A transformers causal language model from a folder of safetensors, never from a hub."""
    from transformers import AutoModelForCausalLM

    try:
        with _ONE_AT_A_TIME:
            return AutoModelForCausalLM.from_pretrained(
                folder,
                attn_implementation=attention,
                dtype=dtype,
                local_files_only=True,
                use_safetensors=True,
            )
    except KeyError as error:
        if error.args != (attention,):
            raise
        raise PackingError(
            "this base cannot be run packed: its attention is not exchangeable"
        ) from error
