"""The fallback for bases that cannot be packed exactly: rows side by side, padded on the right.

Takes the batches of a PackedModel and gives the same logits and gradients, by transformers' own
eager attention; it computes what rows share once for each of them. One forward pass a batch, as
packed, so that ZeRO-3 ranks stay in step; it needs the room of R x T positions. In a causal model
no token sees the padding behind it, so none is masked; padding repeats a position of its own row,
so a NaN never crosses.

Shapes: R rows of T tokens, padded; K kept positions.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from encoders.errors import PackingError
from encoders.packed.packed_attention import LayerStates
from encoders.packed.packed_model import PackedModel, last_hidden, load_frozen
from encoders.packed.packing import PackedBatch

#: Texts that share an opening, so that every way in which a pack differs is tried.
_PROBE_LENGTHS = (1, 9, 12)
#: What a base raises that does not take the packed arguments; a lost file is none of these.
_CANNOT_PACK = (PackingError, TypeError, ValueError, LookupError, AttributeError)


class PaddedModel(PackedModel):
    """Runs `PackedBatch`es as padded rows. It gives and takes no states: `can_cache` is False."""

    can_cache: ClassVar[bool] = False

    def __init__(self, model: Any, fallback_reason: str = "it was asked for") -> None:
        super().__init__(model)
        self.fallback_reason = fallback_reason

    @classmethod
    def load(cls, folder: Path, dtype: torch.dtype = torch.float32) -> "PaddedModel":
        return cls(load_frozen(folder, "eager", dtype))

    def logits(
        self,
        batch: PackedBatch,
        virtual_tokens: Mapping[str, Tensor],
        cache: Sequence[LayerStates] | None = None,
        record: dict[int, LayerStates] | None = None,
    ) -> Tensor:
        """Logits [K, vocabulary] at the batch's kept positions, as PackedModel gives them."""
        if record is not None:
            raise PackingError("this base gives no states to keep: it is not run packed")
        rows, kept = self._rows(batch, virtual_tokens)
        with _head_at(self.model.get_output_embeddings(), kept):
            logits: Tensor = self.model(inputs_embeds=rows, use_cache=False).logits[0]
        return logits

    def hidden(
        self,
        batch: PackedBatch,
        virtual_tokens: Mapping[str, Tensor],
        cache: Sequence[LayerStates] | None = None,
    ) -> Tensor:
        """Last hidden states [K, D] at the batch's kept positions, as PackedModel gives them."""
        rows, kept = self._rows(batch, virtual_tokens)
        head = self.model.get_output_embeddings()
        with _head_at(head, kept[:1]), last_hidden(self.model) as seen:
            self.model(inputs_embeds=rows, use_cache=False)
        return seen[0].flatten(0, 1).index_select(0, kept)

    def _rows(
        self, batch: PackedBatch, virtual_tokens: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Embeddings [R, T, D] of the batch's rows; where the kept positions stand in them [K]."""
        if batch.texts:
            raise PackingError("this base takes no cached texts; pack the rows without a cache")
        index, kept = _padded_rows(batch)
        embeds = self._embed(batch.to(self.device), virtual_tokens)
        rows = embeds.index_select(0, index.flatten().to(self.device)).view(*index.shape, -1)
        return rows, kept.to(self.device)

    def states(
        self, batch: PackedBatch, virtual_tokens: Mapping[str, Tensor] | None = None
    ) -> list[LayerStates]:
        raise PackingError("this base gives no states to cache: it is not run packed")

    @torch.no_grad()
    def plain_logits(self, context: Sequence[int]) -> Tensor:
        """The next token's logits [vocabulary] after one text alone."""
        return self._plain_logits(context)

    def _check_layers(self, batch: PackedBatch) -> None:
        """Any layer will do: rows never meet."""


def load_exact(folder: Path, dtype: torch.dtype = torch.float32) -> PackedModel:
    """Load a base that runs packed where a few texts show that to be exact, else padded.

    `fallback_reason` of the model says which it is. Raises PackingError where neither is exact.
    """
    try:
        return _checked(PackedModel.load(folder, dtype))
    except _CANNOT_PACK as error:
        reason = str(error) if isinstance(error, PackingError) else f"it cannot be packed: {error}"
    padded = _checked(PaddedModel.load(folder, dtype))
    padded.fallback_reason = reason
    return padded


def _checked(model: PackedModel) -> PackedModel:
    num_tokens = model.model.get_input_embeddings().num_embeddings
    probes = [
        (*(token % num_tokens for token in range(5, 4 + length)), length % num_tokens)
        for length in _PROBE_LENGTHS
    ]
    model.check_exact(probes, [model.plain_logits(probe) for probe in probes])
    return model


def _padded_rows(batch: PackedBatch) -> tuple[Tensor, Tensor]:
    """For every segment that none continues, the packed positions [R, T] of its row; and where
    the kept positions stand in it, flattened [K]."""
    parents = {segment.parent for segment in batch.segments}
    rows = [
        segment.keys()
        for segment in batch.segments
        if segment not in parents and segment.start < batch.num_positions
    ]
    longest = max(map(len, rows))
    places: dict[int, int] = {}
    for number, row in enumerate(rows):
        for column, position in enumerate(row):
            places.setdefault(position, number * longest + column)
    padded = [row + row[-1:] * (longest - len(row)) for row in rows]
    return torch.tensor(padded), torch.tensor([places[each] for each in batch.kept.tolist()])


@contextmanager
def _head_at(head: nn.Module | None, kept: Tensor) -> Iterator[None]:
    """Within the context, the head gives [1, K, vocabulary] for hidden states [R, T, D]."""
    if head is None:
        raise PackingError("this base has no language model head of its own")

    def select(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        return (args[0].flatten(0, 1).index_select(0, kept)[None],)

    hook = head.register_forward_pre_hook(select)
    try:
        yield
    finally:
        hook.remove()
