"""Packed runs against plain ones: one row at a time, by transformers' own eager attention."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor

from encoders.errors import PackingError
from encoders.packed.packed_attention import PACKED
from encoders.packed.packed_model import PackedModel
from encoders.packed.packing import PackedRow, pack
from encoders.packed.scoring import answer_log_probs
from tests.encoders.conftest import (
    ARCHITECTURES,
    Gradients,
    packed,
    plain_log_probs,
    plain_logits,
    random_tokens,
)
from tests.encoders.random_rows import lists_of_rows

EXACT = ("llama", "qwen3", "mistral", "gpt2", "gpt_neox")
LENGTHS = {"prefix": 5, "infix": 3, "suffix": 2}
VIRTUAL = {name: tuple(-i - 1 for i in range(length)) for name, length in LENGTHS.items()}
#: Shared heads, texts before and after the virtual tokens, and several answers a row.
ROWS = (
    PackedRow("prefix", (*VIRTUAL["prefix"], 5, 6, 7), ((8, 9, 10),)),
    PackedRow("infix", (11, 12, *VIRTUAL["infix"], 13), ((2, 3), (4,), (2, 5, 6))),
    PackedRow("prefix", (*VIRTUAL["prefix"], 5, 6, 8, 9), ((8,),)),
    PackedRow(None, (20, 21, 22, 23, 24), ((30,), (31, 32))),
    PackedRow("prefix", (*VIRTUAL["prefix"], 40), ((41, 42), (43,))),
    PackedRow("suffix", (50, 51, 52, *VIRTUAL["suffix"]), ((53, 54),)),
)
#: In a float64 model, transformers' eager softmax and RMS norms still compute in float32. GPT-2's
#: do not, nor do SDPA and layer norms.
SINGLE_INSIDE = 1e-7

Models = Callable[..., Any]


def run(
    model: PackedModel, rows: Sequence[PackedRow], tokens: Gradients
) -> tuple[Tensor, Tensor, Gradients]:
    """Kept logits, answers' log-probabilities (in the model's dtype) and gradients."""
    batch = pack(rows, LENGTHS)
    logits = model.logits(batch, tokens)
    labels = logits.log_softmax(-1)[batch.label_kept, batch.label_ids]
    scores = labels.new_zeros(batch.num_answers).index_add(0, batch.label_answer, labels)
    return logits.detach(), scores.detach(), gradients(scores, tokens)


def gradients(scores: Tensor, tokens: Gradients) -> Gradients:
    """d(weighted sum of scores)/d(virtual tokens); the weights tell answers apart."""
    weights = torch.arange(1, len(scores) + 1, dtype=scores.dtype)
    found = torch.autograd.grad((scores * weights).sum(), list(tokens.values()), allow_unused=True)
    return {
        name: torch.zeros_like(table) if grad is None else grad
        for (name, table), grad in zip(tokens.items(), found, strict=True)
    }


def largest(difference: Tensor) -> float:
    return float(difference.detach().abs().max())


@pytest.mark.parametrize(
    ("name", "dtype", "limit"),
    [
        *((name, torch.float32, 1e-5) for name in EXACT),
        *((name, torch.float64, 1e-9 if name == "gpt2" else SINGLE_INSIDE) for name in EXACT),
    ],
)
def test_a_packed_run_equals_a_plain_run(
    models: Models, name: str, dtype: torch.dtype, limit: float
) -> None:
    model, tokens = models(name, dtype), random_tokens(LENGTHS, dtype)
    expected = plain_log_probs(model, ROWS, tokens)
    expected_gradients = gradients(expected, tokens)
    ends = [plain_logits(model, row, (), tokens)[-1].detach() for row in ROWS]

    logits, scores, found = run(packed(model), ROWS, tokens)
    assert largest(logits[: len(ROWS)] - torch.stack(ends)) < limit
    assert largest(scores - expected.detach()) < limit
    for prompt in LENGTHS:
        assert largest(found[prompt] - expected_gradients[prompt]) < limit, prompt
        assert largest(found[prompt]) > 0


@pytest.mark.parametrize("name", EXACT)
def test_packing_itself_is_exact_in_double_precision(models: Models, name: str) -> None:
    model, tokens = models(name, torch.float64), random_tokens(LENGTHS, torch.float64)
    expected = plain_log_probs(model, ROWS, tokens, "sdpa")
    expected_gradients = gradients(expected, tokens)
    _, scores, found = run(packed(model), ROWS, tokens)
    assert largest(scores - expected.detach()) < 1e-12
    limit = 1e-12 if name in ("gpt2", "gpt_neox") else SINGLE_INSIDE
    assert all(largest(found[p] - expected_gradients[p]) < limit for p in LENGTHS)


@given(rows=lists_of_rows(VIRTUAL))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_packed_rows_equal_plain_rows(models: Models, rows: list[PackedRow]) -> None:
    model, tokens = models("gpt2", torch.float64), random_tokens(LENGTHS, torch.float64)
    expected = plain_log_probs(model, rows, tokens)
    expected_gradients = gradients(expected, tokens)
    _, scores, found = run(packed(model), rows, tokens)
    assert largest(scores - expected.detach()) < 1e-9
    assert all(largest(found[p] - expected_gradients[p]) < 1e-9 for p in LENGTHS)


def test_scoring_agrees_with_a_plain_run(models: Models) -> None:
    model, tokens = models("llama"), random_tokens(LENGTHS)
    expected = plain_log_probs(model, ROWS, tokens)
    batch = pack(ROWS, LENGTHS)
    scores = answer_log_probs(packed(model).logits(batch, tokens), batch)
    assert largest(scores - expected) < 1e-5


def test_candidates_as_branches_equal_one_row_for_each(models: Models) -> None:
    model, tokens = packed(models("gpt2", torch.float64)), random_tokens(LENGTHS, torch.float64)
    single = [PackedRow(row.prompt, row.context, (a,)) for row in ROWS for a in row.answers]
    _, branched, one = run(model, ROWS, tokens)
    _, apart, other = run(model, single, tokens)
    assert largest(branched - apart) < 1e-9
    assert all(largest(one[name] - other[name]) < 1e-9 for name in LENGTHS)


def test_neither_the_order_of_rows_nor_their_neighbours_matter(models: Models) -> None:
    model, tokens = packed(models("llama")), random_tokens(LENGTHS)

    def scores(rows: Sequence[PackedRow]) -> dict[PackedRow, Tensor]:
        batch = pack(rows, LENGTHS)
        found = answer_log_probs(model.logits(batch, tokens), batch).detach()
        return dict(zip(rows, found.split([len(row.answers) for row in rows]), strict=True))

    together, turned = scores(ROWS), scores(ROWS[::-1])
    for row in ROWS:
        assert largest(turned[row] - together[row]) < 2e-6
        assert largest(scores([row])[row] - together[row]) < 2e-6


def test_the_order_of_rows_does_not_matter_to_gradients(models: Models) -> None:
    model, tokens = packed(models("llama")), random_tokens(LENGTHS)

    def gradients_of(rows: Sequence[PackedRow]) -> list[Tensor]:
        batch = pack(rows, LENGTHS)
        score = answer_log_probs(model.logits(batch, tokens), batch).sum()
        return list(torch.autograd.grad(score, list(tokens.values())))

    for one, other in zip(gradients_of(ROWS), gradients_of(ROWS[::-1]), strict=True):
        assert largest(one - other) < 1e-6


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_broken_prompt_leaves_its_neighbours_bit_for_bit(models: Models, value: float) -> None:
    model = packed(models("llama"))
    tokens = random_tokens(LENGTHS)
    _, expected, expected_gradients = run(model, ROWS, tokens)
    with torch.no_grad():
        tokens["prefix"][2, 3] = value
    _, scores, found = run(model, ROWS, tokens)

    batch = pack(ROWS, LENGTHS)
    is_broken = torch.tensor([row.prompt == "prefix" for row in ROWS])[batch.answer_row]
    assert bool(scores[is_broken].isnan().all())
    assert torch.equal(scores[~is_broken], expected[~is_broken])
    assert bool(found["prefix"].isnan().any())
    for name in ("infix", "suffix"):
        assert torch.equal(found[name], expected_gradients[name])


def test_weights_are_frozen_and_stay_without_gradient(models: Models) -> None:
    model = packed(models("llama"))
    run(model, ROWS, random_tokens(LENGTHS))
    assert not any(parameter.requires_grad for parameter in model.model.parameters())
    assert all(parameter.grad is None for parameter in model.model.parameters())
    assert not model.model.training


def test_a_long_pack_of_short_rows_fits_a_sliding_window(models: Models) -> None:
    rows = [PackedRow(None, (*range(1, 20), i), ((1,),)) for i in range(1, 9)]
    model = models("mistral", torch.float64)
    expected = plain_log_probs(model, rows, {}, "sdpa")
    batch = pack(rows, {})
    assert batch.num_positions > ARCHITECTURES["mistral"][1]["sliding_window"] - 10
    labels = packed(model).logits(batch, {}).log_softmax(-1)[batch.label_kept, batch.label_ids]
    assert largest(labels - expected) < 1e-9


def test_load_reads_a_folder_frozen_and_packed(tiny_base: Path) -> None:
    model = PackedModel.load(tiny_base)
    assert model.model.config._attn_implementation == PACKED
    assert model.token_dim == 64
    context = (5, 6, 7, 8)
    logits = model.logits(pack([PackedRow(None, context)], {}), {})
    assert largest(logits[0] - model.plain_logits(context)) < 1e-5
    assert model.model.config._attn_implementation == PACKED


def test_check_exact_accepts_a_right_base_and_names_a_wrong_one(models: Models) -> None:
    contexts = [(1, 2, 3, 4, 5), (1, 2, 3), (9,)]
    model = packed(models("llama"))
    expected = [model.plain_logits(context) for context in contexts]
    model.check_exact(contexts, expected)
    wrong = [*expected[:2], expected[2] + 0.1 * expected[2].abs().max()]
    with pytest.raises(
        PackingError, match=r"\(LlamaForCausalLM\) gives other logits .* 0\.09\d* of"
    ):
        model.check_exact(contexts, wrong)
    with pytest.raises(PackingError, match="differ by nan"):
        model.check_exact(contexts, [each * float("nan") for each in expected])


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        ("GPTJConfig", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}),
        ("FalconConfig", {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}),
    ],
)
def test_a_base_that_ignores_the_packed_attention_never_passes(
    tmp_path: Path, kind: str, arguments: dict[str, Any]
) -> None:
    import transformers

    config = getattr(transformers, kind)(vocab_size=97, **arguments)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises((PackingError, ValueError)):
        model = PackedModel.load(tmp_path)
        contexts = [(1, 2, 3, 4, 5), (6, 7), (1,)]
        model.check_exact(contexts, [model.plain_logits(context) for context in contexts])
