import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from encoders.errors import PackingError
from encoders.packed.packing import MIN_POSITIONS, MIN_SHARED_HEAD, PackedRow, pack
from tests.encoders.random_rows import HEAD, LENGTHS, rows


def test_rows_of_one_prompt_share_the_head_they_open_with() -> None:
    shared = [PackedRow("p", (*HEAD, i, 9), ((7,),)) for i in range(3)]
    assert pack(shared, LENGTHS).num_positions == len(HEAD) + 3 * 2


def test_two_prompts_share_nothing() -> None:
    batch = pack([PackedRow("p", (*HEAD, 1)), PackedRow("q", (*HEAD, 1))], LENGTHS)
    assert batch.num_positions == 2 * (len(HEAD) + 1)
    assert batch.prompts == ("p", "q")
    assert batch.virtual_rows.tolist() == list(range(10))


def test_a_row_always_keeps_a_position_of_its_own() -> None:
    batch = pack([PackedRow("p", HEAD), PackedRow("p", HEAD)], LENGTHS)
    assert batch.num_positions == len(HEAD) - 1 + 2
    assert len(set(batch.kept.tolist())) == 2


def test_a_short_common_head_is_not_worth_sharing() -> None:
    short = HEAD[: MIN_SHARED_HEAD - 1]
    batch = pack([PackedRow("p", (*short, i)) for i in (1, 2)], LENGTHS)
    assert batch.num_positions == 2 * (len(short) + 1)


def test_candidates_share_their_row() -> None:
    row = PackedRow("p", (1, 2, *HEAD), ((3, 4), (5,), (3, 6, 7)))
    batch = pack([row], LENGTHS)
    assert batch.num_positions == row.num_positions == 7 + 1 + 0 + 2
    assert batch.num_answers == 3
    assert batch.label_ids.tolist() == [3, 4, 5, 3, 6, 7]
    assert batch.label_answer.tolist() == [0, 0, 1, 2, 2, 2]
    assert batch.answer_row.tolist() == [0, 0, 0]


@given(st.lists(rows, min_size=1, max_size=6))
@settings(max_examples=100, deadline=None)
def test_labels_are_all_answer_tokens_in_order(rows: list[PackedRow]) -> None:
    batch = pack(rows, LENGTHS)
    flat = [(row, answer) for row, each in enumerate(rows) for answer in each.answers]
    assert batch.answer_row.tolist() == [row for row, _ in flat]
    assert batch.label_ids.tolist() == [token for _, answer in flat for token in answer]
    numbers = [number for number, (_, answer) in enumerate(flat) for _ in answer]
    assert batch.label_answer.tolist() == numbers
    assert batch.num_positions <= sum(row.num_positions for row in rows)


@given(st.lists(rows, min_size=1, max_size=6))
@settings(max_examples=100, deadline=None)
def test_positions_count_from_the_start_of_their_own_row(rows: list[PackedRow]) -> None:
    batch = pack(rows, LENGTHS)
    for index, row in enumerate(rows):
        assert int(batch.position_ids[batch.kept[index]]) == len(row.context) - 1
    for label, answer in enumerate(batch.label_answer.tolist()):
        row = rows[batch.answer_row[answer]]
        place = label - batch.label_answer.tolist().index(answer)
        position = int(batch.position_ids[batch.kept[batch.label_kept[label]]])
        assert position == len(row.context) - 1 + place


@given(st.lists(rows, min_size=1, max_size=6))
@settings(max_examples=50, deadline=None)
def test_virtual_rows_point_into_the_stacked_tables_in_the_order_of_prompts(
    rows: list[PackedRow],
) -> None:
    batch = pack(rows, LENGTHS)
    assert set(batch.prompts) == {row.prompt for row in rows}
    used = {(batch.prompts[row // 5], row % 5) for row in batch.virtual_rows.tolist()}
    asked = {(row.prompt, -i - 1) for row in rows for i in row.context if i < 0}
    assert used == asked
    assert bool((batch.token_ids >= 0).all())


def test_no_rows_cannot_be_packed() -> None:
    with pytest.raises(PackingError, match="no rows"):
        pack([], {})


@pytest.mark.parametrize("row", [PackedRow(None, ()), PackedRow(None, (1,), ((2,), ()))])
def test_a_row_needs_a_context_and_its_answers_tokens(row: PackedRow) -> None:
    with pytest.raises(PackingError, match="needs a context, and its answers tokens"):
        pack([row], {})


def test_an_unknown_prompt_is_refused() -> None:
    with pytest.raises(PackingError, match="the prompt 'x' is not among those given"):
        pack([PackedRow("x", (-1, 2))], {"p": 1})


def test_rows_without_answers_keep_their_ends() -> None:
    batch = pack([PackedRow("p", (1, 2)), PackedRow("p", (3,), ((4, 5),))], LENGTHS)
    assert batch.kept.tolist() == [1, 2, 3]
    assert batch.answer_row.tolist() == [1]
    assert batch.label_ids.dtype == torch.long


def test_a_small_pack_gets_filler_that_changes_nothing() -> None:
    batch = pack([PackedRow("p", (*HEAD, 1), ((7, 8),))], LENGTHS)
    assert batch.num_positions == len(HEAD) + 2
    assert len(batch.token_ids) == len(batch.position_ids) == MIN_POSITIONS
    assert batch.kept.tolist() == [5, 6]
    assert int(batch.virtual_positions.max()) < batch.num_positions


def test_a_batch_that_is_on_its_device_already_is_left_as_it_is() -> None:
    batch = pack([PackedRow("p", (*HEAD, 1), ((7, 8),))], LENGTHS)
    assert batch.to(batch.token_ids.device) is batch
