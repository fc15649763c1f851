"""Keys and values of what rows of a prompt open with, its virtual tokens among it: the prompt-KV
cache. Computed once, given to every pack of that prompt's rows, which then holds only what follows.

For inference: no gradient, one set of virtual tokens for each prompt, states in the model's dtype
on its device. What was used longest ago leaves when the bytes run out. As in context_cache.py the
states of a batch's openings stand one behind the other, in the order of `PackedBatch.texts`.

Shapes: T positions of an opening, G key heads, d their size.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping

from torch import Tensor

from encoders.errors import PackingError
from encoders.packed.context_cache import join_states, row_states
from encoders.packed.packed_attention import LayerStates
from encoders.packed.packed_model import PackedModel
from encoders.packed.packing import PackedBatch, PackedRow, PromptHead, Root, pack
from encoders.packed.pass_budget import split_by_budget


class HeadCache:
    """The states of openings on one base, at most `max_bytes` of them."""

    def __init__(
        self, model: PackedModel, virtual_tokens: Mapping[str, Tensor], max_bytes: int
    ) -> None:
        if not model.can_cache:
            raise PackingError("this base gives no states to cache: it is not run packed")
        self._model, self._virtual, self.max_bytes = model, virtual_tokens, max_bytes
        self._lengths = {name: len(table) for name, table in virtual_tokens.items()}
        self._states: OrderedDict[Root, Tensor] = OrderedDict()  # [layers, 2, T, G, d]
        self.num_bytes = 0

    def __contains__(self, root: object) -> bool:
        return root in self._states

    def __len__(self) -> int:
        return len(self._states)

    def compute(self, roots: Iterable[Root], max_positions: int) -> None:
        """Run the forward passes that compute the states of those of `roots` that are not held.
        What is held of `roots` stays, if their bytes are within the bound."""
        wanted = list(dict.fromkeys(roots))
        for root in wanted:
            if root in self._states:
                self._states.move_to_end(root)
        rows = [_as_row(root) for root in wanted if root not in self._states]
        for run in split_by_budget(rows, max_positions):
            batch = pack(run, self._lengths)
            states = row_states(self._model, batch, self._virtual)
            for row, each in zip(run, states, strict=True):
                self._keep(_root(row), each)

    def layers(self, batch: PackedBatch) -> list[LayerStates] | None:
        """Every layer's states [C, G, d] of the batch's openings, which must be held; None where it
        has none."""
        for root in batch.texts:
            self._states.move_to_end(root)
        return join_states([self._states[root] for root in batch.texts], self._model.device)

    def _keep(self, root: Root, states: Tensor) -> None:
        self._states[root] = states
        self.num_bytes += states.nbytes
        while self.num_bytes > self.max_bytes and len(self._states) > 1:
            self.num_bytes -= self._states.popitem(last=False)[1].nbytes


def bytes_per_position(model: PackedModel) -> int:
    """What the keys and values of one position take, over all layers."""
    layers = model.states(pack([PackedRow(None, (0,))], {}))
    return sum(each[0].nbytes for layer in layers for each in (layer.key, layer.value))


def _as_row(root: Root) -> PackedRow:
    if isinstance(root, PromptHead):
        return PackedRow(root.prompt, root.ids)
    return PackedRow(None, root)


def _root(row: PackedRow) -> Root:
    return row.context if row.prompt is None else PromptHead(row.prompt, row.context)
