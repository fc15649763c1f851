"""Slots are shared out by rows' lengths, used again, and closed up when a sequence leaves."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from encoders.packed.decoding_slots import DecodingRoom, SlotPool, capacity_for, plan_slots
from encoders.packed.packed_attention import LayerStates
from tests.encoders.conftest import packed

Models = Callable[..., Any]


@pytest.fixture
def pool(models: Models) -> SlotPool:
    return SlotPool(packed(models("llama")), num_slots=3, capacity=16)


def layers(num_positions: int) -> list[LayerStates]:
    """States whose every number tells the position, negative in values."""
    number = torch.arange(1.0, num_positions + 1)[:, None, None].expand(-1, 2, 8)
    return [LayerStates(number, -number)] * 2


def held(pool: SlotPool, slot: int) -> list[int]:
    step, _ = pool.step()
    for keys, values in zip(step.states.keys, step.states.values, strict=True):
        assert torch.equal(keys[slot], -values[slot])
    return [int(each) for each in step.states.keys[1][slot, 1, :, 7]]


def test_a_slot_holds_its_own_positions_and_is_filled_with_the_last(pool: SlotPool) -> None:
    pool.enter(layers(9), [[0, 1], [4, 2, 8]])
    assert held(pool, 0) == [1, 2] + [2] * 14
    assert held(pool, 1) == [5, 3, 9] + [9] * 13


def test_the_last_sequence_moves_into_a_gap_and_a_new_one_takes_the_next(pool: SlotPool) -> None:
    first, second, third = pool.enter(layers(3), [[0], [1], [2]])
    assert pool.num_free == 0
    pool.leave(first)
    assert pool.num_free == 1
    step, places = pool.step()
    assert places == [third, second]
    assert [held(pool, slot)[0] for slot in (0, 1)] == [3, 2]
    assert step.positions.tolist() == [1, 1]
    (fourth,) = pool.enter(layers(1), [[0]])
    assert pool.step()[1] == [third, second, fourth]


def test_a_sequence_that_enters_takes_a_gap_and_nothing_moves(pool: SlotPool) -> None:
    first, second, _ = pool.enter(layers(3), [[0], [1], [2]])
    pool.leave(second)
    (new,) = pool.enter(layers(7), [[6]])
    assert (first.slot, new.slot) == (0, 1)
    assert held(pool, 1)[0] == 7


def test_a_step_counts_positions_on(pool: SlotPool) -> None:
    (place,) = pool.enter(layers(5), [[0, 1, 2, 3]])
    assert [pool.step()[0].positions.tolist() for _ in range(3)] == [[4], [5], [6]]
    assert place.length == 7


def test_more_sequences_than_slots_are_our_own_error(pool: SlotPool) -> None:
    with pytest.raises(AssertionError, match="more sequences than slots"):
        pool.enter(layers(1), [[0]] * 4)
    pool.enter(layers(1), [[0]] * 3)


@pytest.mark.parametrize(
    ("length", "capacity"),
    [(1, 16), (16, 16), (17, 24), (24, 24), (25, 32), (33, 48), (48, 48), (49, 64), (1000, 1024)],
)
def test_capacities(length: int, capacity: int) -> None:
    assert capacity_for(length) == capacity


def test_rows_that_fit_get_a_slot_each() -> None:
    plan = plan_slots([10, 12, 30, 70], 1, 100, DecodingRoom(8, 100 * 1000))
    assert plan == {16: 2, 32: 1, 96: 1}


def test_beams_take_a_slot_each() -> None:
    assert plan_slots([10, 12, 30], 4, 100, DecodingRoom(64, 100 * 1000)) == {16: 8, 32: 4}


def test_where_sequences_are_bounded_each_capacity_gets_its_share() -> None:
    assert plan_slots([10] * 90 + [30] * 10, 1, 1, DecodingRoom(20)) == {16: 18, 32: 2}


def test_where_bytes_are_bounded_their_sum_stays_within_them() -> None:
    plan = plan_slots([10] * 64 + [30] * 32, 1, 10, DecodingRoom(1000, 10 * 512))
    assert plan == {16: 16, 32: 8}
    assert sum(count * each * 10 for each, count in plan.items()) <= 10 * 512


def test_a_row_that_is_larger_than_the_room_gets_a_slot_nevertheless() -> None:
    assert plan_slots([1000], 2, 1000, DecodingRoom(1, 1)) == {1024: 2}
