"""Rows packed along the openings they share, against the same rows packed whole."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from encoders.packed.packed_model import PackedModel
from encoders.packed.packing import PackedRow, pack
from encoders.packed.pass_budget import split_by_budget
from encoders.packed.scoring import answer_log_probs
from encoders.packed.shared_openings import cut_where_shared
from tests.encoders.conftest import packed, plain_log_probs, random_tokens
from tests.encoders.random_rows import HEAD, LENGTHS

EXACT = ("llama", "qwen3", "mistral", "gpt2", "gpt_neox")
FIRST, SECOND = (11, 12, 13, 14, 15), (21, 22, 23, 24)
#: Two texts behind the prompt, and rows that branch off each: a tree of three openings.
TREE = tuple(
    PackedRow("p", (*HEAD, *text, *own), ((7, 8), (9,)))
    for text, own in (
        (FIRST, (1, 2)),
        (FIRST, (*SECOND, 3)),
        (FIRST, (*SECOND, 4, 5)),
        (SECOND, (1,)),
        (SECOND, (6, 6)),
    )
)

Models = Callable[..., Any]


def in_order(rows: tuple[PackedRow, ...] | list[PackedRow]) -> list[PackedRow]:
    return sorted(dict.fromkeys(rows), key=lambda row: (row.context, row.answers))


def scores(model: PackedModel, rows: list[PackedRow], tokens: Any) -> torch.Tensor:
    batch = pack(rows, LENGTHS)
    return answer_log_probs(model.logits(batch, tokens), batch).detach()


def test_every_shared_opening_is_packed_once() -> None:
    batch = pack(cut_where_shared(in_order(TREE)), LENGTHS)
    answers = len(TREE)  # (7, 8) stands behind each row with its first token
    assert batch.num_positions == len(HEAD) + 5 + 2 + 4 + 1 + 2 + 4 + 1 + 2 + answers
    assert len({segment.depth for segment in batch.segments}) > 3


def test_cuts_stand_where_rows_part() -> None:
    found = {row.context[5:]: row.cuts for row in cut_where_shared(in_order(TREE))}
    assert found[*FIRST, 1, 2] == (5, 10)
    assert found[*FIRST, *SECOND, 3] == (5, 10, 14)
    assert found[*SECOND, 1] == (5, 9)


def test_a_short_branch_and_a_lone_row_have_no_cuts() -> None:
    short = [PackedRow("p", (1, 2, 3, 4)), PackedRow("p", (1, 2, 3, 5))]
    assert cut_where_shared(short) == short
    assert cut_where_shared(TREE[:1]) == [TREE[0]]
    assert cut_where_shared([]) == []


def test_what_a_cached_head_gives_is_not_shared_again() -> None:
    rows = [PackedRow("p", (*HEAD, 1, 2, 3, each), head=5) for each in (4, 5)]
    assert cut_where_shared(rows) == rows


@pytest.mark.parametrize("name", EXACT)
def test_shared_rows_equal_rows_run_alone(models: Models, name: str) -> None:
    tokens = random_tokens(LENGTHS)
    rows = cut_where_shared(in_order(TREE))
    expected = plain_log_probs(models(name), rows, tokens).detach()
    assert torch.allclose(scores(packed(models(name)), rows, tokens), expected, atol=1e-5)


few = st.integers(1, 3)  # so that rows do open alike
trees = st.lists(
    st.builds(
        lambda before, after: PackedRow("p", (*before, *HEAD, *after), ((5,), (6, 7))),
        st.lists(few, max_size=1),
        st.lists(few, min_size=1, max_size=12),
    ),
    min_size=1,
    max_size=12,
)


@given(trees)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_rows_equal_their_whole_pack(models: Models, rows: list[PackedRow]) -> None:
    model, tokens = packed(models("gpt2", torch.float64)), random_tokens(LENGTHS, torch.float64)
    ordered = in_order(rows)
    shared = cut_where_shared(ordered)
    expected = torch.cat([scores(model, [row], tokens) for row in ordered])
    assert torch.allclose(scores(model, shared, tokens), expected, atol=1e-9)
    assert pack(shared, LENGTHS).num_positions <= max(pack(ordered, LENGTHS).num_positions, 16)


@given(trees, st.integers(1, 60))
@settings(max_examples=100, deadline=None)
def test_packs_along_openings_stay_within_the_budget(rows: list[PackedRow], budget: int) -> None:
    shared = cut_where_shared(in_order(rows))
    runs = list(split_by_budget(shared, budget))
    assert [row for run in runs for row in run] == shared
    longest = max((row.cuts[-1] for row in shared if row.cuts), default=0)
    for run in runs:
        most = max(budget, longest + budget / 2)
        assert len(run) == 1 or pack(run, LENGTHS).num_positions <= most
