"""Decoding step by step against plain runs of each row, alone and whole."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from encoders.packed.decoding import CachedSequences, EntryPass, Sequences, pack_whole
from encoders.packed.decoding_slots import DecodingRoom, position_bytes
from encoders.packed.decoding_whole import RecomputedSequences
from encoders.packed.head_cache import HeadCache
from encoders.packed.packed_model import PackedModel
from encoders.packed.packing import PackedRow, pack
from encoders.packed.padded_model import PaddedModel
from tests.encoders.conftest import LONGEST, Gradients, packed, plain_logits, random_tokens
from tests.tiny import keeps_row_bits

EXACT = ("llama", "qwen3", "mistral", "gpt2", "gpt_neox")
LENGTHS = {"prefix": 5, "infix": 3}
VIRTUAL = {name: tuple(-i - 1 for i in range(length)) for name, length in LENGTHS.items()}
ROWS = (
    PackedRow("prefix", (*VIRTUAL["prefix"], 5, 6, 7)),
    PackedRow("infix", (11, 12, *VIRTUAL["infix"], 13)),
    PackedRow("prefix", (*VIRTUAL["prefix"], 5, 6, 8, 9)),
    PackedRow(None, tuple(range(20, 50))),
    PackedRow("prefix", (*VIRTUAL["prefix"], 40)),
    PackedRow(None, (60,)),
)
NUM_NEW = 12
LONG = [len(row.context) + NUM_NEW for row in ROWS]
SINGLE_INSIDE = 1e-7  # transformers' softmax and RMS norms in a float64 model

Models = Callable[..., Any]


def continuation(row: int) -> list[int]:
    """What row `row` goes on with; another length for each."""
    return [(7 * row + 3 * step) % 90 + 1 for step in range(NUM_NEW - row)]


def expected_logits(model: Any, tokens: Gradients) -> list[Tensor]:
    """For each row the logits after its context and after each token behind it."""
    return [
        plain_logits(model, row, continuation(i), tokens)[len(row.context) - 1 :].detach()
        for i, row in enumerate(ROWS)
    ]


def decode(sequences: Sequences[Any], rows: Sequence[int] = range(len(ROWS))) -> list[Tensor]:
    """The same logits by steps: rows enter as they are admitted and leave after their last."""
    waiting, found = list(rows), {row: list[Tensor]() for row in rows}
    living: dict[Any, int] = {}
    while waiting or living:
        admitted = sequences.admitted([LONG[row] for row in waiting])
        entering = [waiting[place] for place in admitted]
        if entering:
            places, logits = sequences.enter(
                [ROWS[row] for row in entering], [LONG[row] for row in entering]
            )
            for row, (place,), own in zip(entering, places, logits, strict=True):
                living[place] = row
                found[row].append(own)
            waiting = [row for row in waiting if row not in entering]
        tokens = {
            place: continuation(row)[len(found[row]) - 1]
            for place, row in living.items()
            if len(found[row]) <= len(continuation(row))
        }
        for place in living.keys() - tokens.keys():
            sequences.leave(place)
        living = {place: row for place, row in living.items() if place in tokens}
        if living:
            for place, own in zip(*sequences.step(tokens), strict=True):
                found[living[place]].append(own)
    return [torch.stack(found[row]) for row in rows]


def cached(model: PackedModel, tokens: Gradients, **room: int) -> CachedSequences:
    return CachedSequences(model, tokens, pack_whole(LENGTHS), LONG, room=DecodingRoom(**room))


def largest(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-5), (torch.float64, None)])
def test_steps_equal_plain_runs(
    models: Models, name: str, dtype: torch.dtype, limit: float | None
) -> None:
    """Mistral's window of 32 is shorter than the longest row, and than its context and answer."""
    tokens = random_tokens(LENGTHS, dtype)
    expected = expected_logits(models(name, dtype), tokens)
    found = decode(cached(packed(models(name, dtype)), tokens))
    assert largest(found, expected) < (limit or SINGLE_INSIDE)


@pytest.mark.parametrize("max_sequences", [1, 2, 4])
def test_rows_that_wait_for_a_slot_give_the_same(models: Models, max_sequences: int) -> None:
    tokens = random_tokens(LENGTHS, torch.float64)
    model = packed(models("gpt2", torch.float64))
    expected = decode(cached(model, tokens))
    assert largest(decode(cached(model, tokens, max_sequences=max_sequences)), expected) < 1e-10


def test_few_bytes_bound_the_slots_and_change_nothing(models: Models) -> None:
    tokens = random_tokens(LENGTHS, torch.float64)
    model = packed(models("gpt2", torch.float64))
    small = cached(model, tokens, max_bytes=position_bytes(model) * 60)
    assert len(small.admitted(LONG)) < len(ROWS)
    assert largest(decode(small), decode(cached(model, tokens))) < 1e-10


@pytest.mark.skipif(not keeps_row_bits(), reason="kernels here give a row other bits in company")
def test_neighbours_do_not_change_a_bit_of_a_row_that_shares_nothing(models: Models) -> None:
    tokens, model = random_tokens(LENGTHS), packed(models("llama"))
    together = decode(cached(model, tokens))
    for row in (1, 3, 5):  # the others share an opening with each other
        (alone,) = decode(cached(model, tokens), [row])
        assert torch.equal(alone, together[row])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_broken_prompt_leaves_its_neighbours_bit_for_bit(models: Models, value: float) -> None:
    tokens, model = random_tokens(LENGTHS), packed(models("llama"))
    expected = decode(cached(model, tokens, max_sequences=3))
    with torch.no_grad():
        tokens["prefix"][2, 3] = value
    found = decode(cached(model, tokens, max_sequences=3))
    for row, one, other in zip(ROWS, found, expected, strict=True):
        if row.prompt == "prefix":
            assert bool(one.isnan().all())
        else:
            assert torch.equal(one, other)


def test_rows_behind_openings_whose_states_are_given_equal_whole_rows(models: Models) -> None:
    tokens = random_tokens(LENGTHS, torch.float64)
    model = packed(models("gpt2", torch.float64))
    heads = HeadCache(model, tokens, 1 << 20)

    def passes(rows: Sequence[PackedRow]) -> list[EntryPass]:
        headed = [
            PackedRow(row.prompt, row.context, head=5) if row.prompt == "prefix" else row
            for row in rows
        ]
        roots = [row.root for row in headed if row.head]
        heads.compute(roots, 64)
        batch = pack(headed, LENGTHS, frozenset(roots))
        return [EntryPass(range(len(rows)), batch, heads.layers(batch))]

    found = decode(CachedSequences(model, tokens, passes, LONG))
    assert largest(found, decode(cached(model, tokens))) < 1e-10


@pytest.mark.parametrize("kind", ["cached", "whole"])
def test_copied_sequences_go_on_as_their_sources(models: Models, kind: str) -> None:
    """Three sequences a row: 0 and 1 change places, 2 becomes what 0 was."""
    tokens = random_tokens(LENGTHS, torch.float64)
    model, row, said = models("gpt2", torch.float64), ROWS[1], (70, 71, 72)
    expected = [
        plain_logits(model, row, [first, 80], tokens)[-1].detach() for first in (71, 70, 70)
    ]
    sequences: Any
    if kind == "cached":
        model = packed(model)
        sequences = CachedSequences(model, tokens, pack_whole(LENGTHS), [LONG[1]], width=3)
    else:
        sequences = RecomputedSequences(PaddedModel(model), tokens, pack_whole(LENGTHS), width=3)
    assert sequences.admitted([LONG[1]]) == [0]
    ((zero, one, two),), _ = sequences.enter([row], [LONG[1]])
    sequences.step(dict(zip((zero, one, two), said, strict=True)))
    sequences.copy([one, zero, zero], [zero, one, two])
    places, logits = sequences.step(dict.fromkeys((zero, one, two), 80))
    found = dict(zip(places, logits, strict=True))
    assert largest([found[zero], found[one], found[two]], expected) < 1e-9


def test_a_base_that_gives_no_states_runs_whole_rows_with_the_same_logits(models: Models) -> None:
    tokens = random_tokens(LENGTHS, torch.float64)
    model = models("gpt2", torch.float64)
    expected = expected_logits(model, tokens)
    model.set_attn_implementation("eager")
    room = DecodingRoom(max_sequences=4)
    whole = RecomputedSequences(PaddedModel(model), tokens, pack_whole(LENGTHS), room=room)
    assert whole.admitted(LONG) == [0, 1, 2, 3]
    assert largest(decode(whole), expected) < 1e-9


def test_rows_grow_to_the_last_position_of_the_base(models: Models) -> None:
    model = packed(models("gpt2"))
    row = PackedRow(None, tuple(range(1, LONGEST)))
    sequences = CachedSequences(model, {}, pack_whole({}), [LONGEST + 1])
    ((place,),), first = sequences.enter([row], [LONGEST + 1])
    _, last = sequences.step({place: 9})
    assert first.shape == last.shape == (1, 97)
    expected = model.logits(pack([PackedRow(None, (*row.context, 9))], {}), {})[:1]
    assert largest(last, expected) < 1e-5
