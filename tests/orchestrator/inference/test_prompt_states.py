"""What is held and what is packed: a plan of the call alone."""

from collections.abc import Mapping

import pytest
import torch

from encoders.packed.head_cache import bytes_per_position
from encoders.packed.packed_attention import PACKED
from encoders.packed.packed_model import PackedModel
from encoders.packed.packing import PackedRow, PromptHead, Root
from encoders.packed.scoring import answer_log_probs
from orchestrator.inference.passes import Passes
from orchestrator.inference.prompt_states import PromptStates, plan_heads
from tests.encoders.conftest import make_model, random_tokens

LENGTHS = {"p": 4, "q": 4, "r": 4}
P = (-1, -2, -3, -4)
FIXED = (5, 6, 7)
OPENINGS: Mapping[str, tuple[int, ...]] = {"p": (*P, *FIXED), "q": (*P, 9, 9), "r": P}


def head(name: str, length: int = 10) -> PromptHead:
    return PromptHead(name, tuple(-i - 1 for i in range(length)))


@pytest.fixture(scope="module")
def model() -> PackedModel:
    base = make_model("llama")
    base.set_attn_implementation(PACKED)
    return PackedModel(base)


def states_of(model: PackedModel, num_positions: int) -> PromptStates:
    room = num_positions * bytes_per_position(model)
    return PromptStates(model, random_tokens(LENGTHS), OPENINGS, room)


def test_all_openings_are_held_where_those_of_all_prompts_fit() -> None:
    wanted: dict[Root, int] = {head("a"): 1, head("b"): 5}
    plan = plan_heads(wanted, num_all_bytes=300, position_bytes=10, max_bytes=300)
    assert plan.held == set(wanted)
    assert plan.note.startswith("2 of 2 openings held")
    assert "20 positions fewer" in plan.note


def test_where_they_do_not_fit_those_with_most_rows_are_held() -> None:
    wanted: dict[Root, int] = {head("a"): 1, head("b"): 5, head("c", 15): 9, head("d", 5): 1}
    plan = plan_heads(wanted, num_all_bytes=301, position_bytes=10, max_bytes=300)
    assert plan.held == {head("c", 15), head("b"), head("d", 5)}
    assert "the others are packed" in plan.note


def test_no_room_holds_nothing() -> None:
    plan = plan_heads({head("a"): 3}, num_all_bytes=100, position_bytes=10, max_bytes=0)
    assert plan.held == frozenset()


def test_a_row_is_given_the_longest_opening_that_it_has(model: PackedModel) -> None:
    rows = [
        PackedRow("p", (*P, *FIXED, 8)),
        PackedRow("p", (*P, 5, 6, 8)),  # its fixed text was merged with what follows
        PackedRow("p", (*P, *FIXED)),  # nothing would be left of it
        PackedRow("q", (*P, 9, 9, 1)),
        PackedRow("r", (3, *P, 1)),  # does not open with its prompt
        PackedRow(None, (1, 2, 3)),
    ]
    planned = states_of(model, 100).plan(rows)
    assert [row.head for row in planned] == [7, 4, 4, 6, 0, 0]
    assert [row.context for row in planned] == [row.context for row in rows]


def test_the_plan_does_not_depend_on_what_was_held_before(model: PackedModel) -> None:
    rows = [PackedRow("p", (*P, *FIXED, 8)), PackedRow("q", (*P, 9, 9, 1))]
    fresh, used = states_of(model, 8), states_of(model, 8)
    passes = Passes(model, random_tokens(LENGTHS), used)
    passes.run([PackedRow("q", (*P, 9, 9, 1), ((1,),))] * 2, model.logits, answers)
    assert used.plan(rows) == fresh.plan(rows)
    assert used.note == fresh.note


def answers(logits: torch.Tensor, batch: object) -> list[torch.Tensor]:
    scores = answer_log_probs(logits, batch)  # type: ignore[arg-type]
    return list(scores.split(1))


@torch.no_grad()
@pytest.mark.parametrize("room", [0, 7, 11, 1000])
def test_any_room_gives_the_same_results(model: PackedModel, room: int) -> None:
    rows = [
        PackedRow(name, (*opening, *own), ((7,),))
        for own in ((1,), (2, 3), (11, 12, 13, 14, 15), (11, 12, 13, 14, 16))
        for name, opening in OPENINGS.items()
    ]
    tokens = random_tokens(LENGTHS)
    whole = Passes(model, tokens, states_of(model, 0)).run(rows, model.logits, answers)
    passes = Passes(model, tokens, states_of(model, room), max_positions=20)
    for _ in range(2):  # filling, and filled
        found = passes.run(rows, model.logits, answers)
        assert torch.allclose(torch.cat(found), torch.cat(whole), atol=1e-5)


@torch.no_grad()
def test_the_same_call_gives_the_same_bits_in_a_fresh_and_in_a_used_process(
    model: PackedModel,
) -> None:
    tokens = random_tokens(LENGTHS)
    rows = [PackedRow(name, (*opening, 1), ((7,),)) for name, opening in OPENINGS.items()]
    used = Passes(model, tokens, states_of(model, 1000))
    used.run(rows[1:2], model.logits, answers)  # one prompt's came first
    fresh = Passes(model, tokens, states_of(model, 1000))
    one, other = (each.run(rows, model.logits, answers) for each in (used, fresh))
    assert torch.equal(torch.cat(one), torch.cat(other))


@torch.no_grad()
def test_equal_rows_are_run_once(model: PackedModel) -> None:
    tokens, row = random_tokens(LENGTHS), PackedRow("p", (*P, 1, 2), ((7,),))
    other = PackedRow("p", (*P, 1, 3), ((7,),))
    passes = Passes(model, tokens, states_of(model, 1000))
    sizes: list[int] = []

    def counted(logits: torch.Tensor, batch: object) -> list[torch.Tensor]:
        found = answers(logits, batch)
        sizes.append(len(found))
        return found

    first, between, last = passes.run([row, other, row], model.logits, counted)
    assert sizes == [2]
    assert torch.equal(first, last)
    assert not torch.equal(first, between)
