from hypothesis import given, settings
from hypothesis import strategies as st

from encoders.packed.packing import PackedRow, pack
from encoders.packed.pass_budget import split_by_budget
from tests.encoders.random_rows import HEAD, LENGTHS, rows


@given(st.lists(rows, max_size=12), st.integers(1, 40))
@settings(max_examples=100, deadline=None)
def test_split_by_budget_covers_all_rows_once_in_order(rows: list[PackedRow], budget: int) -> None:
    packs = list(split_by_budget(rows, budget))
    assert [row for each in packs for row in each] == rows
    for each in packs:
        assert len(each) == 1 or pack(each, LENGTHS).num_positions <= budget


@given(st.lists(rows, max_size=6), st.lists(rows, max_size=6), st.integers(1, 40))
@settings(max_examples=100, deadline=None)
def test_neighbours_never_change_where_a_prompts_rows_are_cut(
    before: list[PackedRow], own: list[PackedRow], budget: int
) -> None:
    own = [PackedRow("own", row.context, row.answers) for row in own]
    among = split_by_budget([*before, *own, *before], budget)
    cut = [part for each in among if (part := tuple(r for r in each if r.prompt == "own"))]
    assert cut == list(split_by_budget(own, budget))


def test_packs_are_filled_with_whole_prompts() -> None:
    rows = [PackedRow(prompt, (*HEAD, 1)) for prompt in "ppqqrr"]  # 7 positions a prompt
    assert [len(each) for each in split_by_budget(rows, 20)] == [4, 2]
    assert [len(each) for each in split_by_budget(rows, 21)] == [6]


def test_a_head_counts_once_in_each_part_of_its_prompts_rows() -> None:
    rows = [PackedRow("p", (*HEAD, i, 2)) for i in range(4)]
    assert [len(each) for each in split_by_budget(rows, 13)] == [4]
    assert [len(each) for each in split_by_budget(rows, 12)] == [3, 1]
