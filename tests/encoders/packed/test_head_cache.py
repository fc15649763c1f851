"""Rows whose prompts' keys and values are given, against the same rows packed whole."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from encoders.errors import PackingError
from encoders.packed.head_cache import HeadCache, bytes_per_position
from encoders.packed.packed_attention import PACKED
from encoders.packed.packed_model import PackedModel
from encoders.packed.packing import PackedRow, PromptHead, Root, pack
from encoders.packed.padded_model import PaddedModel
from encoders.packed.scoring import answer_log_probs
from tests.encoders.conftest import (
    Gradients,
    make_model,
    packed,
    plain_log_probs,
    plain_logits,
    random_tokens,
)
from tests.tiny import keeps_row_bits

EXACT = ("llama", "qwen3", "mistral", "gpt2", "gpt_neox")
LENGTHS = {"p": 3, "q": 6}
P, Q = ((-1, -2, -3), (-1, -2, -3, -4, -5, -6))
TEXT = (5, 6, 7, 8)
#: The prompt first; behind a text; with text before and behind, all of it fixed; split in two.
ROWS = (
    PackedRow("p", (*P, 10, 11), ((2, 3), (4,), (2, 5, 6)), head=3),
    PackedRow("p", (*P, 12), ((2, 3),), head=3),
    PackedRow("q", (*TEXT, *Q, 20, 21, 15), ((8, 9),), head=12),
    PackedRow("q", (*TEXT, *Q, 20, 21, 16, 17), ((8, 9),), head=12),
    PackedRow("q", (*TEXT, 30, *Q), ((1,), (2,)), head=4),  # text alone: no prompt's own
    PackedRow("q", (*Q[:3], 40, 41, *Q[3:], 42), ((43,), (44, 45))),  # not given
    PackedRow(None, (*TEXT, 51, 52), ((53,), (54, 55)), head=4),
)
ROOM = 1 << 30

Models = Callable[..., Any]


def cached_of(model: PackedModel, tokens: Gradients, rows: Sequence[PackedRow]) -> HeadCache:
    cache = HeadCache(model, tokens, ROOM)
    cache.compute([row.root for row in rows if row.head], 16)
    return cache


@torch.no_grad()
def scores(
    model: PackedModel, rows: Sequence[PackedRow], tokens: Gradients, cache: HeadCache | None
) -> Tensor:
    roots: frozenset[Root] = frozenset(row.root for row in rows if row.head and cache)
    batch = pack(rows, LENGTHS, roots)
    layers = cache.layers(batch) if cache else None
    return answer_log_probs(model.logits(batch, tokens, layers), batch)


@pytest.mark.parametrize("name", EXACT)
def test_given_prompts_equal_rows_run_alone(models: Models, name: str) -> None:
    tokens = random_tokens(LENGTHS)
    expected = plain_log_probs(models(name), ROWS, tokens).detach()
    model = packed(models(name))
    found = scores(model, ROWS, tokens, cached_of(model, tokens, ROWS))
    assert torch.allclose(found, expected, atol=1e-5)
    assert torch.allclose(found, scores(model, ROWS, tokens, None), atol=1e-5)


def test_a_sliding_window_reaches_into_given_prompts_as_far_as_into_packed_ones() -> None:
    tokens = random_tokens(LENGTHS, torch.float64)
    model = packed(make_model("mistral", torch.float64, sliding_window=4))
    found = scores(model, ROWS, tokens, cached_of(model, tokens, ROWS))
    assert torch.allclose(found, scores(model, ROWS, tokens, None), atol=1e-7)
    unlimited = packed(make_model("mistral", torch.float64))
    assert not torch.allclose(found, scores(unlimited, ROWS, tokens, None), atol=1e-5)


def test_only_what_follows_a_given_prompt_is_packed() -> None:
    rows = ROWS[2:4]
    batch = pack(rows, LENGTHS, {row.root for row in rows})
    assert batch.texts == (PromptHead("q", (*TEXT, *Q, 20, 21)),)
    assert batch.num_positions == (1 + 1) + (2 + 1)
    assert batch.prompts == ("q",)
    assert batch.position_ids[:2].tolist() == [12, 13]


def test_text_alone_is_one_opening_for_all_prompts() -> None:
    assert ROWS[4].root == ROWS[6].root == TEXT
    assert ROWS[2].root != replace(ROWS[2], prompt="p").root


def test_rows_may_share_more_than_their_given_prompt(models: Models) -> None:
    rows = [
        PackedRow("p", (*P, *TEXT, *own), ((1, 2),), head=3, cuts=(7,))
        for own in ((9,), (10, 11), (12,))
    ]
    model, tokens = packed(models("llama")), random_tokens(LENGTHS)
    cache = cached_of(model, tokens, rows)
    batch = pack(rows, LENGTHS, {rows[0].root})
    assert batch.num_positions == 4 + (1 + 1) + (2 + 1) + (1 + 1)
    whole = [replace(row, cuts=(), head=0) for row in rows]
    expected = scores(model, whole, tokens, None)
    assert torch.allclose(scores(model, rows, tokens, cache), expected, atol=1e-5)


def test_rows_with_and_without_the_given_prompt_do_not_share_segments(models: Models) -> None:
    own = [PackedRow("p", (*P, *TEXT, last), ((1,),), cuts=(7,)) for last in (9, 10)]
    rows = [replace(own[0], head=3), own[1]]
    model, tokens = packed(models("llama")), random_tokens(LENGTHS)
    expected = scores(model, own, tokens, None)
    found = scores(model, rows, tokens, cached_of(model, tokens, rows))
    assert torch.allclose(found, expected, atol=1e-5)


def test_neighbours_do_not_change_a_bit(models: Models) -> None:
    if not keeps_row_bits():
        pytest.skip("this machine's kernels do not keep a row's bits")
    model, tokens = packed(models("llama")), random_tokens(LENGTHS)
    cache = cached_of(model, tokens, ROWS)
    together = scores(model, ROWS, tokens, cache)
    alone = [scores(model, [row], tokens, cached_of(model, tokens, [row])) for row in ROWS]
    assert torch.equal(together, torch.cat(alone))


def test_what_was_used_longest_ago_leaves(models: Models) -> None:
    model, tokens = packed(models("llama")), random_tokens({"a": 4, "b": 4, "c": 4})
    heads = [PromptHead(name, (-1, -2, -3, -4)) for name in "abc"]
    cache = HeadCache(model, tokens, 8 * bytes_per_position(model))
    cache.compute(heads[:2], 16)
    assert cache.num_bytes == cache.max_bytes
    cache.compute([heads[0], heads[2]], 16)
    assert [head in cache for head in heads] == [True, False, True]
    assert len(cache) == 2
    assert cache.num_bytes == cache.max_bytes


def test_an_opening_is_computed_once(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens = packed(models("llama")), random_tokens(LENGTHS)
    cache = cached_of(model, tokens, ROWS)
    monkeypatch.setattr(model, "states", None)  # would fail if it were called
    cache.compute([row.root for row in ROWS if row.head], 16)
    assert len(cache) == 3


def test_a_base_that_runs_padded_holds_nothing() -> None:
    with pytest.raises(PackingError, match="not run packed"):
        HeadCache(PaddedModel(make_model("gemma2")), {}, ROOM)


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2", "gpt_neox"])
@pytest.mark.parametrize("is_padded", [False, True])
def test_hidden_states_equal_transformers_own(models: Models, name: str, is_padded: bool) -> None:
    tokens, base = random_tokens(LENGTHS), models(name)
    rows = [replace(row, answers=(), head=0) for row in ROWS]
    expected = torch.stack([last_hidden(base, row, tokens) for row in rows])
    if is_padded:
        base.set_attn_implementation("eager")
    else:
        base.set_attn_implementation(PACKED)
    model = PaddedModel(base) if is_padded else PackedModel(base)
    found = model.hidden(pack(rows, LENGTHS), tokens).detach()
    assert torch.allclose(found, expected, atol=1e-5)
    head = base.get_output_embeddings()
    assert torch.allclose(
        head(found[0]), plain_logits(base, rows[0], (), tokens)[-1].detach(), atol=1e-5
    )


@torch.no_grad()
def last_hidden(base: Any, row: PackedRow, tokens: Gradients) -> Tensor:
    """`hidden_states[-1]` of one row run alone by transformers."""
    ids = torch.tensor(row.context)
    embeds = base.get_input_embeddings()(ids.clamp(min=0))
    virtual = (ids < 0).nonzero()[:, 0]
    if len(virtual):
        embeds = embeds.index_copy(0, virtual, tokens[row.prompt or ""][-ids[virtual] - 1])
    base.set_attn_implementation("eager")
    output = base(inputs_embeds=embeds[None], output_hidden_states=True, use_cache=False)
    hidden: Tensor = output.hidden_states[-1][0, -1]
    return hidden
