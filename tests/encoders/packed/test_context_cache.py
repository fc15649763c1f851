"""Cached runs against uncached ones: the same rows, packed whole."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from encoders.errors import PackingError
from encoders.packed.context_cache import MIN_CACHED_TEXT, CacheBudget, ContextCache
from encoders.packed.packed_model import PackedModel
from encoders.packed.packing import PackedRow, pack
from encoders.packed.pass_budget import CACHED_COST, split_by_budget
from encoders.packed.scoring import answer_log_probs
from tests.encoders.conftest import Gradients, make_model, packed, random_tokens

EXACT = ("llama", "qwen3", "mistral", "gpt2", "gpt_neox")
LENGTHS = {"p": 3, "q": 2}
VIRTUAL = {name: tuple(-i - 1 for i in range(length)) for name, length in LENGTHS.items()}
TEXT = (5, 6, 7, 8, 9)
ROWS = (
    PackedRow("p", (*TEXT, *VIRTUAL["p"]), ((2, 3), (4,), (2, 5, 6))),
    PackedRow("p", (11, 12, *VIRTUAL["p"], 13, 14), ((2, 3),)),
    PackedRow("q", (*TEXT, *VIRTUAL["q"], 15), ((8, 9),)),  # the same text under another prompt
    PackedRow("q", (*range(20, 37), *VIRTUAL["q"]), ((1,),)),
    PackedRow("q", (*VIRTUAL["q"], 40, 41), ((42,),)),  # nothing stands before its prompt
    PackedRow(None, (50, 51, 52), ((53,), (54, 55))),  # no prompt
)
ROOM = CacheBudget(1 << 30)

Models = Callable[..., Any]


def run(
    model: PackedModel, rows: Sequence[PackedRow], tokens: Gradients, cache: ContextCache | None
) -> tuple[Tensor, list[Tensor]]:
    """Log-probabilities of the answers, and gradients of a sum that tells them apart."""
    batch = pack(rows, LENGTHS, cache or frozenset())
    logits = model.logits(batch, tokens, cache.layers(batch) if cache else None)
    labels = logits.log_softmax(-1)[batch.label_kept, batch.label_ids]
    scores = labels.new_zeros(batch.num_answers).index_add(0, batch.label_answer, labels)
    weights = torch.arange(1, len(scores) + 1, dtype=scores.dtype)
    found = torch.autograd.grad((scores * weights).sum(), list(tokens.values()), allow_unused=True)
    zeros = [torch.zeros_like(table) for table in tokens.values()]
    return scores.detach(), [zero if g is None else g for g, zero in zip(found, zeros, strict=True)]


def filled(
    model: PackedModel,
    rows: Sequence[PackedRow],
    budget: CacheBudget = ROOM,
    dtype: torch.dtype | None = None,
) -> ContextCache:
    cache = ContextCache(model, budget, dtype)
    for texts in cache.missing(rows, 16):
        cache.compute(texts)
    return cache


def largest_difference(one: Any, other: Any) -> float:
    pairs = [(one[0], other[0]), *zip(one[1], other[1], strict=True)]
    return max(float((a - b).abs().max()) for a, b in pairs)


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-5), (torch.float64, 1e-7)])
def test_a_cached_run_equals_an_uncached_one_in_value_and_gradient(
    models: Models, name: str, dtype: torch.dtype, limit: float
) -> None:
    model, tokens = packed(models(name, dtype)), random_tokens(LENGTHS, dtype)
    cache = filled(model, ROWS)
    found = run(model, ROWS, tokens, cache)
    assert largest_difference(found, run(model, ROWS, tokens, None)) < limit
    assert all(float(gradient.abs().max()) > 0 for gradient in found[1])


ids = st.integers(1, 96)
random_rows = st.lists(
    st.builds(
        lambda prompt, text, after, answers: PackedRow(
            prompt, (*text, *VIRTUAL[prompt], *after), tuple(map(tuple, answers))
        ),
        st.sampled_from(list(LENGTHS)),
        st.one_of(st.just(TEXT), st.lists(ids, max_size=9).map(tuple)),
        st.lists(ids, max_size=3),
        st.lists(st.lists(ids, min_size=1, max_size=3), min_size=1, max_size=3),
    ),
    min_size=1,
    max_size=6,
)


@given(random_rows)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_rows_equal_their_uncached_run(models: Models, rows: list[PackedRow]) -> None:
    model, tokens = packed(models("gpt2", torch.float64)), random_tokens(LENGTHS, torch.float64)
    found = run(model, rows, tokens, filled(model, rows))
    assert largest_difference(found, run(model, rows, tokens, None)) < 1e-9


def test_only_what_follows_a_cached_text_is_packed(models: Models) -> None:
    cache = filled(packed(models("llama")), ROWS)
    assert set(map(len, cache._states)) == {2, 5, 17}
    batch = pack(ROWS[2:3], LENGTHS, cache)
    assert batch.num_positions == 2 + 1 + 1
    assert batch.position_ids[: batch.num_positions].tolist() == [5, 6, 7, 8]
    assert pack(ROWS[:3], LENGTHS, cache).texts == (TEXT, (11, 12))


def test_a_text_is_computed_once_for_all_prompts_and_rounds(models: Models) -> None:
    cache = filled(packed(models("llama")), ROWS)
    assert len(cache) == 3
    assert cache.missing(ROWS, 16) == []
    more = [*ROWS, PackedRow("p", (60, 61, 62, *VIRTUAL["p"]))]
    assert [[row.context for row in run] for run in cache.missing(more, 16)] == [[(60, 61, 62)]]


def test_a_text_that_is_too_short_is_not_worth_caching(models: Models) -> None:
    short = tuple(range(1, MIN_CACHED_TEXT))
    cache = ContextCache(packed(models("llama")), ROOM)
    assert cache.missing([PackedRow("p", (*short, *VIRTUAL["p"]))], 16) == []


def test_beyond_memory_states_go_to_files_and_then_nowhere_with_the_same_results(
    models: Models, tmp_path: Path
) -> None:
    model, tokens = packed(models("llama")), random_tokens(LENGTHS)
    whole = filled(model, ROWS)
    per_token = whole.memory_bytes // (2 + 5 + 17)
    tight = filled(model, ROWS, CacheBudget(2 * per_token, 5 * per_token, tmp_path))
    assert (tight.memory_bytes, tight.disk_bytes) == (2 * per_token, 5 * per_token)
    assert len(tight) == 2
    assert tight.is_full
    assert tight.missing(ROWS, 16) == []
    assert list(tmp_path.iterdir()) == [], "the file has no name, so nothing is left of it"
    for text in ((11, 12), TEXT):
        assert torch.equal(tight._states[text], whole._states[text])
    expected = run(model, ROWS, tokens, None)
    assert largest_difference(run(model, ROWS, tokens, tight), expected) < 1e-5
    nothing = filled(model, ROWS, CacheBudget(0))
    assert len(nothing) == 0
    assert largest_difference(run(model, ROWS, tokens, nothing), expected) == 0


def test_a_smaller_dtype_takes_half_the_room_and_stays_close(models: Models) -> None:
    model, tokens = packed(models("llama")), random_tokens(LENGTHS)
    exact, half = filled(model, ROWS), filled(model, ROWS, dtype=torch.float16)
    assert half.memory_bytes * 2 == exact.memory_bytes
    difference = largest_difference(run(model, ROWS, tokens, half), run(model, ROWS, tokens, exact))
    assert 0 < difference < 1e-2


def test_states_that_overflow_their_dtype_are_refused(models: Models) -> None:
    cache = ContextCache(packed(models("llama")), ROOM, torch.float16)
    with pytest.raises(PackingError, match="not finite numbers in torch.float16"):
        cache._keep(TEXT, torch.full((2, 2, 5, 1, 4), 1e6))


def test_neighbours_of_a_broken_prompt_keep_their_cached_results(models: Models) -> None:
    model, tokens = packed(models("llama")), random_tokens(LENGTHS)
    cache = filled(model, ROWS)
    expected, expected_gradients = run(model, ROWS, tokens, cache)
    with torch.no_grad():
        tokens["p"][1, 2] = float("nan")
    scores, found = run(model, ROWS, tokens, cache)
    batch = pack(ROWS, LENGTHS, cache)
    is_broken = torch.tensor([row.prompt == "p" for row in ROWS])[batch.answer_row]
    assert bool(scores[is_broken].isnan().all())
    assert torch.equal(scores[~is_broken], expected[~is_broken])
    assert torch.equal(found[1], expected_gradients[1])


def test_a_cached_position_counts_less_in_the_budget() -> None:
    row = PackedRow("p", (*range(1, 17), *VIRTUAL["p"]), ((1,),))
    cost = 16 * CACHED_COST + 3
    rows = [row] * 4
    assert [len(run) for run in split_by_budget(rows, int(2 * cost))] == [1] * 4
    assert [len(run) for run in split_by_budget(rows, int(2 * cost), {row.text})] == [2, 2]


def test_scoring_reads_a_cached_batch(models: Models) -> None:
    model, tokens = packed(models("qwen3")), random_tokens(LENGTHS)
    cache = filled(model, ROWS)
    batch = pack(ROWS, LENGTHS, cache)
    scores = answer_log_probs(model.logits(batch, tokens, cache.layers(batch)), batch)
    plain = pack(ROWS, LENGTHS)
    expected = answer_log_probs(model.logits(plain, tokens), plain)
    assert float((scores - expected).detach().abs().max()) < 1e-5


def test_a_sliding_window_reaches_into_cached_texts_as_far_as_into_packed_ones() -> None:
    model = packed(make_model("mistral", torch.float64, sliding_window=4))
    tokens = random_tokens(LENGTHS, torch.float64)
    found = run(model, ROWS, tokens, filled(model, ROWS))
    assert largest_difference(found, run(model, ROWS, tokens, None)) < 1e-7
    unlimited = packed(make_model("mistral", torch.float64))
    assert largest_difference(found, run(unlimited, ROWS, tokens, None)) > 1e-5
