"""Packs rows of many prompts into one sequence without padding, sharing what rows have in common.

A batch is a forest of *segments*. A segment attends, causally, to itself and to all of its
ancestors: the head that all rows of one prompt open with (its virtual tokens, say) is computed
once, each row continues its head, and each answer of several continues its row. In a causal
language model this is exact: a token's state depends on what stands before it and nothing else.
What a row opens with may be cached: the text before its first virtual token (context_cache.py), or
an opening that holds virtual tokens (head_cache.py). Its states are then given, and only what
follows it is packed.

Shapes: N packed positions, M of them virtual, K kept (those whose logits are needed), L labels.
"""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from encoders.errors import PackingError
from encoders.packed.attention_layout import AttentionLayout, Segment
from encoders.packed.flex_attention import FlexLayout

MIN_SHARED_HEAD = 4  # a shorter common head costs a segment more than it saves
#: From this many rows up, and on as many threads as a machine's cores, matrix kernels give a row
#: the same bits whatever stands beside it; a smaller pack gets filler.
MIN_POSITIONS = 16

Text = tuple[int, ...]  # token ids that no virtual token precedes


@dataclass(frozen=True)
class PromptHead:
    """What rows of `prompt` open with, virtual tokens (ids below 0) among it."""

    prompt: str | None
    ids: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.ids)


Root = Text | PromptHead  # what states may be given of


@dataclass(frozen=True)
class PackedRow:
    """A row to run: its context and the answers to score after it (none: next-token logits only).

    Context ids below 0 are virtual tokens of `prompt` (see template.py). Ids are never empty.
    `head`: how many of its first positions may be cached, fewer than all (0: its `text`). `cuts`,
    rising: after so many positions it may part from other rows of its prompt, so what stands
    before is computed once for all that open alike (none: what all rows of the prompt open with).
    """

    prompt: str | None
    context: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...] = ()
    head: int = 0
    cuts: tuple[int, ...] = ()

    @property
    def num_positions(self) -> int:
        """Positions the row takes when nothing is shared."""
        if len(self.answers) == 1:
            return len(self.context) + len(self.answers[0]) - 1
        return len(self.context) + sum(len(answer) - 1 for answer in self.answers)

    @cached_property
    def text(self) -> Text:
        """What stands before the first virtual token: it does not depend on the prompt. Empty in a
        row without virtual tokens."""
        first = next((i for i, token in enumerate(self.context) if token < 0), 0)
        return self.context[:first]

    @cached_property
    def root(self) -> Root:
        """What it opens with whose states may be given; empty where there is none."""
        opening = self.context[: self.head]
        if any(token < 0 for token in opening):
            return PromptHead(self.prompt, opening)
        return opening or self.text


@dataclass(frozen=True)
class PackedBatch:
    """Packed rows as tensors, ready for a PackedModel.

    `label_kept`/`label_ids`/`label_answer` [L]: label l is the token `label_ids[l]` of answer
    `label_answer[l]` (counted over all rows), predicted at kept position `label_kept[l]`.
    Kept position r, for r below the number of rows, is the end of row r's context, which stands in
    `row_segments[r]` and its ancestors. `filler` are other positions, as many as a pack of few kept
    ones needs to be MIN_POSITIONS. `texts` are the cached openings, in the order of their states.
    """

    prompts: tuple[str, ...]
    token_ids: Tensor
    position_ids: Tensor
    virtual_positions: Tensor
    virtual_rows: Tensor
    kept: Tensor
    filler: Tensor
    label_kept: Tensor
    label_ids: Tensor
    label_answer: Tensor
    answer_row: Tensor
    segments: tuple[Segment, ...]
    row_segments: tuple[Segment, ...]
    num_positions: int
    texts: tuple[Root, ...] = ()

    @property
    def num_answers(self) -> int:
        return int(self.answer_row.numel())

    @cached_property
    def layout(self) -> AttentionLayout | FlexLayout:
        """Who attends to whom, for the attention that suits the batch's device."""
        device = self.token_ids.device
        if device.type == "cuda":
            return FlexLayout.of(self.segments, device)
        return AttentionLayout.of(self.segments).to(device)

    def to(self, device: torch.device) -> "PackedBatch":
        """The same batch with its tensors on `device`; itself where they are there already."""
        if self.token_ids.device == device:
            return self
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        moved: dict[str, Any] = {
            name: value.to(device) for name, value in values.items() if isinstance(value, Tensor)
        }
        return replace(self, **moved)


def pack(
    rows: Sequence[PackedRow],
    prompt_lengths: Mapping[str, int],
    cached: Container[Root] = frozenset(),
) -> PackedBatch:
    """Pack `rows`; `prompt_lengths` gives the virtual tokens of each prompt they name, `cached`
    the openings whose states will be given."""
    if not rows:
        raise PackingError("there are no rows to pack")
    builder = _Builder(prompt_lengths, cached)
    for group in _by_prompt(rows).values():
        builder.add_group([rows[i] for i in group], group)
    return builder.build(rows)


def _by_prompt(rows: Sequence[PackedRow]) -> dict[str | None, list[int]]:
    groups: dict[str | None, list[int]] = {}
    for index, row in enumerate(rows):
        if not row.context or any(not answer for answer in row.answers):
            raise PackingError(
                f"row {index}, of prompt {row.prompt!r}: "
                "a row needs a context, and its answers tokens"
            )
        groups.setdefault(row.prompt, []).append(index)
    return groups


def is_cached(row: PackedRow, cached: Container[Root]) -> bool:
    """Whether the states of what the row opens with are given."""
    return bool(row.root) and row.root in cached


def common_head(rows: Sequence[PackedRow]) -> int:
    """How many positions all rows open with, leaving each row at least one of its own."""
    if len(rows) < 2:
        return 0
    first, last = min(row.context for row in rows), max(row.context for row in rows)
    limit = min(len(row.context) for row in rows) - 1
    shared = 0
    while shared < limit and first[shared] == last[shared]:
        shared += 1
    return shared if shared >= MIN_SHARED_HEAD else 0


def _end(segment: Segment | None) -> int:
    """Positions up to a segment's end, counted from the start of its rows."""
    return 0 if segment is None else segment.depth + len(segment)


@dataclass
class _Builder:
    prompt_lengths: Mapping[str, int]
    cached: Container[Root]
    prompts: dict[str, int] = field(default_factory=dict)  # name -> first row of the virtual table
    texts: dict[Root, Segment] = field(default_factory=dict)
    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    ends: dict[int, tuple[int, list[list[int]]]] = field(default_factory=dict)
    row_segments: dict[int, Segment] = field(default_factory=dict)

    def add_group(self, rows: Sequence[PackedRow], indices: Sequence[int]) -> None:
        offset = self._virtual_offset(rows[0].prompt)
        whole = [row for row in rows if not (row.cuts or is_cached(row, self.cached))]
        shared = common_head(whole)
        head = self._add(whole[0].context[:shared], None, offset) if shared else None
        openings: dict[tuple[int, Text], Segment] = {}
        for row, index in zip(rows, indices, strict=True):
            parent = None if row.cuts else head
            if is_cached(row, self.cached):
                parent = self._text(row.root)
            parent = self._opening(row, parent, openings, offset)
            self._add_row(row, index, parent, offset)

    def _opening(
        self,
        row: PackedRow,
        parent: Segment | None,
        openings: dict[tuple[int, Text], Segment],
        offset: int,
    ) -> Segment | None:
        """The segment that ends at the row's last cut; those on its way that are new are added."""
        given = _end(parent)
        for cut in row.cuts:
            end, opening = _end(parent), (given, row.context[:cut])
            if cut > end and opening not in openings:
                openings[opening] = self._add(row.context[end:cut], parent, offset)
            parent = openings.get(opening, parent)
        return parent

    def _text(self, text: Root) -> Segment:
        """The cached segment of `text`."""
        start = sum(map(len, self.texts))
        return self.texts.setdefault(text, Segment(start, start + len(text), is_cached=True))

    def _add_row(self, row: PackedRow, index: int, head: Segment | None, offset: int) -> None:
        """Add one row behind what it shares; note where its context ends and where its answers'
        tokens stand."""
        own = row.context[_end(head) :]
        if len(row.answers) == 1:
            segment = self.row_segments[index] = self._add(own + row.answers[0][:-1], head, offset)
            end = segment.start + len(own) - 1
            self.ends[index] = end, [list(range(end, segment.stop))]
            return
        segment = self.row_segments[index] = self._add(own, head, offset)
        end = segment.stop - 1
        where: list[list[int]] = []
        for answer in row.answers:
            tail = self._add(answer[:-1], segment, offset) if len(answer) > 1 else None
            where.append([end, *(range(tail.start, tail.stop) if tail else ())])
        self.ends[index] = end, where

    def _add(self, ids: tuple[int, ...], parent: Segment | None, offset: int) -> Segment:
        start = len(self.ids)
        segment = Segment(start, start + len(ids), parent)
        self.ids += [token if token >= 0 else token - offset for token in ids]
        self.positions += range(segment.depth, segment.depth + len(ids))
        self.segments.append(segment)
        return segment

    def _virtual_offset(self, prompt: str | None) -> int:
        if prompt is None:
            return 0
        if prompt not in self.prompt_lengths:
            raise PackingError(f"the prompt {prompt!r} is not among those given")
        used = sum(self.prompt_lengths[name] for name in self.prompts)
        return self.prompts.setdefault(prompt, used)

    def build(self, rows: Sequence[PackedRow]) -> PackedBatch:
        num_positions = len(self.ids)
        if num_positions < MIN_POSITIONS:
            self._add((0,) * (MIN_POSITIONS - num_positions), None, 0)
        ids = torch.tensor(self.ids)
        virtual = (ids < 0).nonzero()[:, 0]
        kept = [self.ends[i][0] for i in range(len(rows))]
        kept_index = {position: i for i, position in enumerate(kept)}
        labels: list[tuple[int, int, int]] = []
        answer_row: list[int] = []
        for index, row in enumerate(rows):
            for answer, where in zip(row.answers, self.ends[index][1], strict=True):
                for token, position in zip(answer, where, strict=True):
                    if position not in kept_index:
                        kept_index[position] = len(kept)
                        kept.append(position)
                    labels.append((kept_index[position], token, len(answer_row)))
                answer_row.append(index)
        label = torch.tensor(labels, dtype=torch.long).reshape(-1, 3)
        others = (i for i in range(len(self.ids)) if i not in kept_index)
        filler = list(islice(others, max(0, MIN_POSITIONS - len(kept))))
        return PackedBatch(
            prompts=tuple(self.prompts),
            token_ids=ids.clamp(min=0),
            position_ids=torch.tensor(self.positions),
            virtual_positions=virtual,
            virtual_rows=-ids[virtual] - 1,
            kept=torch.tensor(kept),
            filler=torch.tensor(filler, dtype=torch.long),
            label_kept=label[:, 0],
            label_ids=label[:, 1],
            label_answer=label[:, 2],
            answer_row=torch.tensor(answer_row, dtype=torch.long),
            segments=tuple(self.segments),
            num_positions=num_positions,
            row_segments=tuple(self.row_segments[i] for i in range(len(rows))),
            texts=tuple(self.texts),
        )
