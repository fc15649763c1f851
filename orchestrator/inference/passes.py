"""Runs rows of many prompts through a base, in packs: whatever is read of them, ranks or states.

Equal rows are run once. Rows of a prompt lie side by side in the order of their ids, so that what
they open with alike is one segment. How they are cut into packs depends on a prompt's own rows.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Protocol, TypeVar

from torch import Tensor

from encoders.packed.decoding import EntryPass
from encoders.packed.packed_attention import LayerStates
from encoders.packed.packed_model import PackedModel
from encoders.packed.packing import PackedBatch, PackedRow, pack
from encoders.packed.pass_budget import split_by_budget
from encoders.packed.shared_openings import cut_where_shared
from orchestrator.inference.prompt_states import PromptStates

MAX_POSITIONS = 2048  # of one forward pass

T = TypeVar("T")


class Forward(Protocol):
    """`PackedModel.logits`, `label_logits` or `hidden`."""

    def __call__(
        self,
        batch: PackedBatch,
        virtual_tokens: Mapping[str, Tensor],
        cache: Sequence[LayerStates] | None = None,
    ) -> Tensor: ...


class Passes:
    """Forward passes of `model` with the virtual tokens [V, D] of prompts; `states` holds what rows
    of a prompt open with."""

    def __init__(
        self,
        model: PackedModel,
        virtual_tokens: Mapping[str, Tensor],
        states: PromptStates,
        max_positions: int = MAX_POSITIONS,
    ) -> None:
        self.model, self.states = model, states
        self._virtual, self._max_positions = virtual_tokens, max_positions
        self._lengths = {name: len(table) for name, table in virtual_tokens.items()}

    def run(
        self,
        rows: Sequence[PackedRow],
        forward: Forward,
        read: Callable[[Tensor, PackedBatch], Sequence[T]],
    ) -> list[T]:
        """What `read` says of each row, in order: of a pack's output it gives one result a row."""
        distinct = list(dict.fromkeys(rows))
        found: dict[PackedRow, T] = {}
        for each in self.entries(distinct):
            results = read(forward(each.batch, self._virtual, each.cache), each.batch)
            found.update(zip((distinct[i] for i in each.rows), results, strict=True))
        return [found[row] for row in rows]

    def entries(self, rows: Sequence[PackedRow]) -> Iterator[EntryPass]:
        """The packs of `rows`, each with the states that it is to be given."""
        order = sorted(range(len(rows)), key=lambda i: self._order(rows[i]))
        planned = self._shared(self.states.plan([rows[i] for i in order]))
        held = frozenset(row.root for row in planned if row.head)
        first = 0
        for run in split_by_budget(planned, self._max_positions, held):
            batch = pack(run, self._lengths, held)
            yield EntryPass(order[first : first + len(run)], batch, self.states.layers(batch))
            first += len(run)

    def _order(self, row: PackedRow) -> tuple[str, object, object]:
        """Padded rows lie beside those of like length, packed ones beside those that open alike."""
        by = row.context if self.model.can_cache else len(row.context)
        return row.prompt or "", by, row.answers

    def _shared(self, rows: Sequence[PackedRow]) -> list[PackedRow]:
        if not self.model.can_cache:
            return list(rows)
        groups = groupby(rows, key=lambda row: row.prompt)
        return [row for _, group in groups for row in cut_where_shared(list(group))]
