"""Layouts read back: each composed row holds its prefix, its virtual tokens and its text."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from encoders.errors import PromptError
from encoders.prompted.row_layout import Alignment, RowLayout, lay_out

#: Of each row: which of its input positions are text, its virtual tokens, its prefix.
Row = tuple[list[bool], int, int]
rows = st.lists(
    st.tuples(
        st.lists(st.booleans(), min_size=6, max_size=6).filter(any),
        st.integers(0, 3),
        st.integers(0, 3),
    ),
    min_size=1,
    max_size=5,
)


def laid_out(rows: list[Row], alignment: Alignment, may_lead: bool = True) -> RowLayout:
    mask = torch.tensor([text for text, _, _ in rows])
    num_virtual = torch.tensor([virtual for _, virtual, _ in rows])
    num_prefix = torch.tensor([prefix for _, _, prefix in rows])
    return lay_out(mask, num_virtual, num_prefix, alignment, may_lead)


def firsts(counts: list[int]) -> Tensor:
    """Where each row's part starts in a stacked table."""
    return torch.tensor([sum(counts[:i]) for i in range(len(counts))])


@given(rows, st.sampled_from(Alignment), st.booleans())
@settings(max_examples=150, deadline=None)
def test_every_row_reads_prefix_then_virtual_tokens_then_text(
    rows: list[Row], alignment: Alignment, may_lead: bool
) -> None:
    layout = laid_out(rows, alignment, may_lead)
    virtual = [count for _, count, _ in rows]
    prefixes = [count for _, _, count in rows]
    embedding_rows = layout.embedding_rows(firsts(virtual))
    prefix_rows = layout.prefix_rows(firsts(prefixes))
    leading = layout.num_leading
    assert prefix_rows.shape == layout.mask.shape == layout.positions.shape
    assert embedding_rows.shape[1] == layout.num_slots - leading
    for i, (text, num_virtual, num_prefix) in enumerate(rows):
        # an id for everything a slot may hold: -1 - row of the prefixes, or a row of embeddings
        held = [-int(each) for each in prefix_rows[i]]
        for slot, row in enumerate(embedding_rows[i].tolist(), start=leading):
            if row:
                assert held[slot] == 0
                held[slot] = row
        expected = [-1 - firsts(prefixes)[i].item() - j for j in range(num_prefix)]
        expected += [len(rows) * 6 + 1 + firsts(virtual)[i].item() + j for j in range(num_virtual)]
        expected += [i * 6 + j + 1 for j in range(6) if text[j]]
        is_held = layout.mask[i]
        assert [each for each in held if each] == expected
        assert [each != 0 for each in held] == is_held.tolist()
        assert layout.positions[i][is_held].tolist() == list(range(len(expected)))


@given(rows, st.sampled_from([Alignment.LEFT, Alignment.RIGHT]))
@settings(max_examples=60, deadline=None)
def test_rows_have_no_gap_and_stand_at_their_side(rows: list[Row], alignment: Alignment) -> None:
    mask = laid_out(rows, alignment).mask
    aligned = mask if alignment is Alignment.LEFT else mask.flip(1)
    assert bool((aligned[:, :-1] >= aligned[:, 1:]).all())
    assert bool(mask.any(0).all())


@given(rows)
@settings(max_examples=60, deadline=None)
def test_in_front_prefixes_share_a_region_and_texts_a_start(rows: list[Row]) -> None:
    layout = laid_out(rows, Alignment.FRONT)
    region = max(prefix for _, _, prefix in rows)
    assert layout.num_leading == region
    assert bool(layout.mask[:, region].all())


@given(rows)
@settings(max_examples=60, deadline=None)
def test_slots_lead_only_while_every_row_has_a_prefix(rows: list[Row]) -> None:
    assert laid_out(rows, Alignment.LEFT).num_leading == min(prefix for _, _, prefix in rows)
    assert laid_out(rows, Alignment.LEFT, may_lead=False).num_leading == 0
    right = laid_out(rows, Alignment.RIGHT)
    assert bool((right.prefix_rows(right.mask.sum(1) * 0)[:, : right.num_leading] > 0).all())


@given(rows, st.sampled_from(Alignment))
@settings(max_examples=60, deadline=None)
def test_what_is_placed_can_be_taken_back(rows: list[Row], alignment: Alignment) -> None:
    layout = laid_out(rows, alignment)
    mask = torch.tensor([text for text, _, _ in rows])
    values = torch.arange(mask.numel()).view(mask.shape) + 1
    placed = layout.place(values, -7)
    assert sorted(placed[placed != -7].tolist()) == values[mask].tolist()
    taken = layout.take(placed.unsqueeze(-1).float(), -1.0)
    assert torch.equal(taken[..., 0], values.masked_fill(~mask, -1).float())


def test_one_position_of_padding_at_the_right_holds_the_fill() -> None:
    layout = laid_out([([True, True, False], 0, 0)], Alignment.LEFT)
    assert layout.take(torch.tensor([[[5.0], [6.0]]]), -1.0)[..., 0].tolist() == [[5, 6, -1]]


def test_what_stands_in_order_is_not_copied() -> None:
    layout = laid_out([([True, True], 1, 0), ([True, True], 1, 0)], Alignment.LEFT)
    states = torch.randn(2, 3, 4)
    assert layout.take(states).data_ptr() == states[:, 1:].data_ptr()


def test_virtual_positions_are_taken_before_the_inputs() -> None:
    layout = laid_out([([False, True, True], 2, 0), ([True, True, True], 1, 0)], Alignment.LEFT)
    slots = torch.arange(8.0).view(2, 4, 1)
    assert layout.take(slots, -1.0)[..., 0].tolist() == [[-1, 2, 3], [5, 6, 7]]
    found = layout.take(slots, -1.0, with_virtual=True)[..., 0]
    assert found.tolist() == [[0, 1, -1, 2, 3], [-1, 4, 5, 6, 7]]


def test_keys_of_attention_weights_are_taken_from_all_slots() -> None:
    layout = laid_out([([False, True], 1, 1), ([True, True], 0, 1)], Alignment.LEFT)
    weights = torch.arange(6.0).view(2, 1, 1, 3)  # slots: prefix, virtual or text, text
    assert layout.take_keys(weights).tolist() == [[[[0, 2]]], [[[4, 5]]]]
    assert layout.take_keys(weights, with_virtual=True).tolist() == [[[[1, 0, 2]]], [[[0, 4, 5]]]]


def test_a_row_without_text_is_refused() -> None:
    with pytest.raises(PromptError, match=r"the rows \[1\] have no text"):
        laid_out([([True, False], 1, 0), ([False, False], 1, 0)], Alignment.LEFT)
