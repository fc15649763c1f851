"""Which openings of prompts' rows are held as keys and values, and which are packed anew.

A held opening costs a pack no position, and memory for as long as it is held; a packed one costs
its positions once in every pack that has rows of its prompt. So all are held where they fit; where
they do not, those with most rows of a call. A plan follows from the prompts and the call alone,
never from what is held by then: the same call gives the same bits in a fresh process.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from torch import Tensor

from encoders.packed.context_cache import MIN_CACHED_TEXT
from encoders.packed.head_cache import HeadCache, bytes_per_position
from encoders.packed.packed_attention import LayerStates
from encoders.packed.packed_model import PackedModel
from encoders.packed.packing import PackedBatch, PackedRow, Root
from encoders.packed.pass_budget import split_by_budget

HELD_BYTES = 1 << 30  # of keys and values, unless another bound is asked for
FILL_POSITIONS = 256  # of a pass that computes openings: enough to keep the processor's cores busy


@dataclass(frozen=True)
class HeadPlan:
    """The openings that a call is given states of, and why, in a line."""

    held: frozenset[Root]
    note: str


def plan_heads(
    wanted: Mapping[Root, int], num_all_bytes: int, position_bytes: int, max_bytes: int
) -> HeadPlan:
    """The openings to hold of those `wanted` by so many rows each. `num_all_bytes`: those of all
    prompts, of `position_bytes` a position."""
    by_use = sorted(wanted, key=lambda root: -wanted[root])  # stable: those named first go first
    held: list[Root] = []
    num_bytes = 0
    for root in by_use:
        needed = len(root) * position_bytes
        if num_all_bytes <= max_bytes or num_bytes + needed <= max_bytes:
            held.append(root)
            num_bytes += needed
    saved = sum(len(root) for root in held)
    note = (
        f"{len(held)} of {len(wanted)} openings held as keys and values: {_size(num_bytes)} of "
        f"{_size(max_bytes)}, and {saved} positions fewer in every round of packs"
    )
    if len(held) < len(wanted):
        note += f"; the others are packed: all prompts' would take {_size(num_all_bytes)}"
    return HeadPlan(frozenset(held), note)


class PromptStates:
    """Plans calls, and holds at most `max_bytes` of `openings`: ids by prompt, virtual ones < 0."""

    def __init__(
        self,
        model: PackedModel,
        virtual_tokens: Mapping[str, Tensor],
        openings: Mapping[str, tuple[int, ...]],
        max_bytes: int = HELD_BYTES,
    ) -> None:
        self._model, self._max_bytes = model, max_bytes
        self._openings = openings
        self._lengths = {name: _lengths(opening) for name, opening in openings.items()}
        self._cache = HeadCache(model, virtual_tokens, max_bytes) if model.can_cache else None
        self.note = "nothing was asked for yet"

    def plan(self, rows: Sequence[PackedRow]) -> list[PackedRow]:
        """`rows` with the `head` of each whose opening is to be given; `note` says why."""
        if self._cache is None:
            self.note = f"prompts are run with each row: {self._model.fallback_reason}"
            return list(rows)
        marked = [self._with_head(row) for row in rows]
        wanted = Counter(row.root for row in marked if row.head)
        plan = plan_heads(wanted, self._num_all_bytes, self._position_bytes, self._max_bytes)
        self.note = plan.note
        return [
            each if not each.head or each.root in plan.held else row
            for row, each in zip(rows, marked, strict=True)
        ]

    def layers(self, batch: PackedBatch) -> list[LayerStates] | None:
        """Every layer's states of a batch's openings; those that are not held are computed."""
        if self._cache is None or not batch.texts:
            return None
        for group in dict.fromkeys(self._group(root) for root in batch.texts):
            self._cache.compute(group, FILL_POSITIONS)
        return self._cache.layers(batch)

    def _with_head(self, row: PackedRow) -> PackedRow:
        """The row with the longest opening of its prompt that it does open with."""
        opening = self._openings.get(row.prompt or "", ())
        for length in self._lengths.get(row.prompt or "", ()):
            if length < len(row.context) and row.context[:length] == opening[:length]:
                return replace(row, head=length)
        return row

    def _group(self, root: Root) -> tuple[Root, ...]:
        """The openings computed in one pass with `root`: always the same, so that its bits are."""
        if self._num_all_bytes <= self._max_bytes:
            return self._groups.get(root, (root,))
        return (root,)

    @cached_property
    def _groups(self) -> dict[Root, tuple[Root, ...]]:
        """All prompts' openings, in order, in runs of FILL_POSITIONS."""
        runs = split_by_budget(self._whole, FILL_POSITIONS)
        groups = [tuple(_longer(row).root for row in run) for run in runs]
        return {root: group for group in groups for root in group}

    @cached_property
    def _whole(self) -> list[PackedRow]:
        """A row for each opening of all prompts; of those that are alike, one."""
        named = [
            PackedRow(name, opening[: lengths[0]])
            for (name, opening), lengths in zip(
                self._openings.items(), self._lengths.values(), strict=True
            )
            if lengths
        ]
        return list({_longer(row).root: row for row in named}.values())

    @cached_property
    def _num_all_bytes(self) -> int:
        return sum(len(row.context) for row in self._whole) * self._position_bytes

    @cached_property
    def _position_bytes(self) -> int:
        return bytes_per_position(self._model)


def _longer(row: PackedRow) -> PackedRow:
    """A row that opens with all of `row`."""
    return replace(row, context=(*row.context, 0), head=len(row.context))


def _lengths(opening: tuple[int, ...]) -> tuple[int, ...]:
    """How much of an opening may be held: all of it, or up to its last virtual token."""
    last = max((place + 1 for place, token in enumerate(opening) if token < 0), default=0)
    lengths = dict.fromkeys((len(opening), last))
    return tuple(length for length in lengths if length >= MIN_CACHED_TEXT)


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:.1f} MiB"
