"""Keys and values of texts that stand before any virtual token: computed once, used every step.

In a causal model they do not depend on the prompt, so epochs, tasks, trials and versions on one
base share them. They are computed without gradient and kept in memory up to a budget, then in
unlinked files (which a killed process leaves nothing of), then not at all: what is not cached is
packed whole, with the same result. Exact in the model's dtype; a smaller `dtype` halves the room.

Shapes: T tokens of a text, C of all texts in a batch, G key heads, d their size.
"""

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from encoders.errors import PackingError
from encoders.packed.packed_attention import LayerStates
from encoders.packed.packed_model import PackedModel
from encoders.packed.packing import PackedBatch, PackedRow, PromptHead, Text, pack
from encoders.packed.pass_budget import split_by_budget

MIN_CACHED_TEXT = 2  # a shorter text costs more to fetch than to compute


@dataclass(frozen=True)
class CacheBudget:
    """Bytes the cache may hold in memory and, beyond those, in files of `folder`."""

    memory_bytes: int
    disk_bytes: int = 0
    folder: Path | None = None


class ContextCache:
    """The states of texts on one base. `text in cache` tells whether its states are held."""

    def __init__(
        self, model: PackedModel, budget: CacheBudget, dtype: torch.dtype | None = None
    ) -> None:
        self._model, self._budget, self._dtype = model, budget, dtype
        self._states: dict[Text, Tensor] = {}  # [layers, 2, T, G, d]
        self.memory_bytes = 0
        self.disk_bytes = 0
        self.is_full = not model.can_cache or budget.memory_bytes + budget.disk_bytes == 0

    def __contains__(self, text: object) -> bool:
        return text in self._states

    def __len__(self) -> int:
        return len(self._states)

    def missing(self, rows: Iterable[PackedRow], max_positions: int) -> list[tuple[PackedRow, ...]]:
        """The forward passes that would cache the texts of `rows`; none once it is full."""
        if self.is_full:
            return []
        texts = {row.text for row in rows if len(row.text) >= MIN_CACHED_TEXT}
        wanted = sorted(texts - self._states.keys(), key=lambda text: (len(text), text))
        return list(split_by_budget((PackedRow(None, text) for text in wanted), max_positions))

    def compute(self, texts: Sequence[PackedRow]) -> None:
        """Run one of the passes of `missing` and keep its states."""
        states = row_states(self._model, pack(texts, {}))
        for row, each in zip(texts, states, strict=True):
            self._keep(row.context, each)

    def layers(self, batch: PackedBatch) -> list[LayerStates] | None:
        """Every layer's states [C, G, d] of the batch's cached texts; None where it has none."""
        texts = [text for text in batch.texts if not isinstance(text, PromptHead)]
        return join_states([self._states[text] for text in texts], self._model.device)

    def _keep(self, text: Text, states: Tensor) -> None:
        states = states.to("cpu", self._dtype)
        if not bool(torch.isfinite(states).all()):
            raise PackingError(
                f"the keys or values of a text of {len(text)} tokens are not finite numbers in "
                f"{states.dtype}; give the cache a wider dtype"
            )
        if self.memory_bytes + states.nbytes <= self._budget.memory_bytes:
            self.memory_bytes += states.nbytes
            self._states[text] = states
        elif self.disk_bytes + states.nbytes <= self._budget.disk_bytes:
            self.disk_bytes += states.nbytes
            self._states[text] = _in_file(states, self._budget.folder)
        else:
            self.is_full = True


def row_states(
    model: PackedModel, batch: PackedBatch, virtual_tokens: Mapping[str, Tensor] | None = None
) -> list[Tensor]:
    """The states [layers, 2, T, G, d] of each row's context in a batch: keys, then values."""
    layers = model.states(batch, virtual_tokens)
    found: list[Tensor] = []
    for segment in batch.row_segments:
        positions = torch.tensor(segment.keys(), device=model.device)
        pairs = [torch.stack([layer.key[positions], layer.value[positions]]) for layer in layers]
        found.append(torch.stack(pairs))
    return found


def join_states(states: Sequence[Tensor], device: torch.device) -> list[LayerStates] | None:
    """Every layer's states [C, G, d] of rows one behind the other; None where there are none."""
    if not states:
        return None
    joined = torch.cat(tuple(states), dim=2).to(device)
    return [LayerStates(key, value) for key, value in joined]


def _in_file(states: Tensor, folder: Path | None) -> Tensor:
    """The same values, mapped from a file that has no name any more."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix="context-") as file:
        file.truncate(states.nbytes)
        mapped = torch.from_file(
            file.name, shared=True, size=states.numel(), dtype=states.dtype
        ).view(states.shape)
        return mapped.copy_(states)
