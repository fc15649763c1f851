"""Generates answers for rows of many prompts on one base, side by side: continuous batching.

Rows enter together as far as there is room; each step gives every living sequence one token; a row
that has its answer leaves at once, and the next that waits takes its place, whatever its prompt.
What a row answers does not depend on who is decoded beside it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from encoders.packed.decoding import (
    ROOM,
    CachedSequences,
    PackEntries,
    Sequences,
    pack_whole,
)
from encoders.packed.decoding_choice import Sampling
from encoders.packed.decoding_slots import DecodingRoom
from encoders.packed.decoding_whole import RecomputedSequences
from encoders.packed.packed_model import PackedModel
from encoders.packed.packing import PackedRow
from encoders.text.tokenization import TextTokenizer
from orchestrator.domain.batch import Decoding
from orchestrator.domain.decoding_check import check_decoding
from orchestrator.inference.answer_end import AnswerEnd
from orchestrator.inference.row_search import (
    BeamedSearch,
    SingleSearch,
    advance_singles,
)


@dataclass(frozen=True)
class GenerationRow:
    """A row to continue: `context` with virtual tokens of `prompt`, by at most `max_new_tokens`
    (where `Decoding` does not say). `seed`: the row's number; with `Decoding.seed` all that its
    samples depend on."""

    prompt: str
    context: tuple[int, ...]
    max_new_tokens: int
    seed: int = 0


@dataclass(frozen=True)
class Generated:
    """`score`: the product of the probabilities of the `num_tokens` generated tokens, the end token
    and a stop string's among them; of the model itself, however tokens were chosen."""

    text: str
    score: float
    num_tokens: int


def generate(
    model: PackedModel,
    tokenizer: TextTokenizer,
    rows: Sequence[GenerationRow],
    decoding: Decoding,
    virtual_tokens: Mapping[str, Tensor],
    *,
    passes: PackEntries | None = None,
    room: DecodingRoom = ROOM,
) -> list[Generated]:
    """Continue `rows`, whose prompts' virtual tokens [V, D] are given; one result a row, in order.

    A row ends at the tokenizer's end token, at a stop string, at its most tokens, or where the
    base's positions end. `passes` packs the rows that enter (else they are packed whole), `room`
    bounds what is decoded at once. Raises InvalidInput for a decoding that cannot be.
    """
    check_decoding(decoding)
    if not rows:
        return []
    lengths = {name: len(table) for name, table in virtual_tokens.items()}
    passes = passes or pack_whole(lengths)
    limits = [_limit(row, decoding, model) for row in rows]
    longest = [len(row.context) + limit for row, limit in zip(rows, limits, strict=True)]
    width = decoding.num_beams
    sequences: Sequences[Any]
    if model.can_cache:
        sequences = CachedSequences(model, virtual_tokens, passes, longest, width, room)
    else:
        sequences = RecomputedSequences(model, virtual_tokens, passes, width, room)
    run = _Run(rows, limits, longest, decoding, AnswerEnd(tokenizer, decoding.stop_strings))
    return run.finish(sequences)


def decoding_note(model: PackedModel) -> str:
    """One line on how answers are generated on this base."""
    if model.can_cache:
        return "generation keeps keys and values; rows enter and leave between steps"
    return f"generation runs every row whole at each step: {model.fallback_reason}"


@dataclass(eq=False)
class _Living:
    """A row that is being decoded: its search, and the places of its sequences."""

    index: int
    search: SingleSearch | BeamedSearch
    places: list[Any]


class _Run:
    """One call's rows on their way to their answers."""

    def __init__(
        self,
        rows: Sequence[GenerationRow],
        limits: Sequence[int],
        longest: Sequence[int],
        decoding: Decoding,
        end: AnswerEnd,
    ) -> None:
        self._rows, self._limits, self._longest = rows, limits, longest
        self._decoding, self._end = decoding, end
        self._living: dict[Any, _Living] = {}  # by place
        self._answers: dict[int, Generated] = {}
        #: Rows of one prompt enter together, and share what they open with.
        self._waiting = sorted(
            range(len(rows)), key=lambda i: (rows[i].prompt, len(rows[i].context))
        )

    @torch.no_grad()
    def finish(self, sequences: Sequences[Any]) -> list[Generated]:
        while self._living or self._waiting:
            self._enter(sequences)
            if self._living:
                self._step(sequences)
        return [self._answers[index] for index in range(len(self._rows))]

    def _enter(self, sequences: Sequences[Any]) -> None:
        admitted = sequences.admitted([self._longest[index] for index in self._waiting])
        if not admitted:
            return
        entering = [self._waiting[place] for place in admitted]
        taken = set(entering)
        self._waiting = [index for index in self._waiting if index not in taken]
        rows = [PackedRow(self._rows[i].prompt, self._rows[i].context) for i in entering]
        places, logits = sequences.enter(rows, [self._longest[index] for index in entering])
        living = [
            _Living(index, self._search(index), here)
            for index, here in zip(entering, places, strict=True)
        ]
        self._living.update((place, each) for each in living for place in each.places)
        self._advance(sequences, living, logits)

    def _step(self, sequences: Sequences[Any]) -> None:
        living = list(dict.fromkeys(self._living.values()))
        tokens = {
            place: token
            for each in living
            for place, token in zip(each.places, each.search.tokens, strict=True)
        }
        places, logits = sequences.step(tokens)
        if self._decoding.num_beams == 1:
            self._advance(sequences, [self._living[place] for place in places], logits)
            return
        order = {place: number for number, place in enumerate(places)}
        rows = torch.tensor([order[place] for each in living for place in each.places])
        self._advance(sequences, living, logits.index_select(0, rows.to(logits.device)))

    def _advance(
        self, sequences: Sequences[Any], living: Sequence[_Living], logits: Tensor
    ) -> None:
        """Every row of `living` goes on by a token; those that have their answer leave."""
        searches = [each.search for each in living]
        singles = [each for each in searches if isinstance(each, SingleSearch)]
        if singles:
            advance_singles(singles, logits, _sampling(self._decoding))
        for search, own in zip(searches, logits.tensor_split(len(living)), strict=True):
            if isinstance(search, BeamedSearch):
                search.take(own)
        for each in living:
            if each.search.answer is not None:
                self._leave(sequences, each, *each.search.answer)
            elif each.search.parents is not None:
                sources = [each.places[parent] for parent in each.search.parents]
                sequences.copy(sources, each.places)

    def _leave(
        self, sequences: Sequences[Any], each: _Living, ids: tuple[int, ...], log_prob: float
    ) -> None:
        self._answers[each.index] = Generated(self._end.text(ids), math.exp(log_prob), len(ids))
        for place in each.places:
            del self._living[place]
            sequences.leave(place)

    def _search(self, index: int) -> SingleSearch | BeamedSearch:
        limit = self._limits[index]

        def is_over(ids: tuple[int, ...]) -> bool:
            return len(ids) >= limit or self._end.is_reached(ids)

        if self._decoding.num_beams > 1:
            return BeamedSearch(self._decoding.num_beams, is_over)
        return SingleSearch(is_over, self._rows[index].seed)


def _limit(row: GenerationRow, decoding: Decoding, model: PackedModel) -> int:
    """The most tokens of a row's answer: the base has no positions beyond its own."""
    asked = decoding.max_new_tokens
    wanted = row.max_new_tokens if asked is None else asked
    positions = getattr(model.model.config.get_text_config(), "max_position_embeddings", None)
    return wanted if positions is None else max(1, min(wanted, positions - len(row.context)))


def _sampling(decoding: Decoding) -> Sampling | None:
    if not decoding.do_sample:
        return None
    return Sampling(decoding.temperature, decoding.top_k, decoding.top_p, decoding.seed)
