"""Padded runs of packed batches against plain ones: one row at a time, by eager attention."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from torch import Tensor

from encoders.errors import PackingError
from encoders.packed.context_cache import CacheBudget, ContextCache
from encoders.packed.packed_model import PackedModel
from encoders.packed.packing import PackedRow, pack
from encoders.packed.padded_model import PaddedModel, load_exact
from tests.encoders.conftest import (
    ARCHITECTURES,
    Gradients,
    packed,
    plain_log_probs,
    plain_logits,
    random_tokens,
)
from tests.encoders.random_rows import lists_of_rows

LENGTHS = {"prefix": 5, "infix": 3}
VIRTUAL = {name: tuple(-i - 1 for i in range(length)) for name, length in LENGTHS.items()}
#: Shared heads, texts before and after the virtual tokens, several answers a row and none.
ROWS = (
    PackedRow("prefix", (*VIRTUAL["prefix"], 5, 6, 7), ((8, 9, 10),)),
    PackedRow("infix", (11, 12, *VIRTUAL["infix"], 13), ((2, 3), (4,), (2, 5, 6))),
    PackedRow("prefix", (*VIRTUAL["prefix"], 5, 6, 8, 9), ((8,), (9,))),
    PackedRow(None, (20, 21, 22, 23, 24), ((30,), (31, 32))),
    PackedRow("prefix", (*VIRTUAL["prefix"], 40)),
)
#: Bases that cannot be packed: config class, arguments, and what `fallback_reason` says.
UNPACKABLE: dict[str, tuple[str, dict[str, Any], str]] = {
    "gemma2": (*ARCHITECTURES["gemma2"], "caps its attention scores"),
    "gpt_oss": (
        "GptOssConfig",
        {**ARCHITECTURES["gpt_oss"][1], "num_experts_per_tok": 2},
        "has attention sinks",
    ),
    "gptj": (
        "GPTJConfig",
        {"vocab_size": 97, "n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4},
        "not exchangeable",
    ),
    "bloom": (
        "BloomConfig",
        {"vocab_size": 97, "hidden_size": 32, "n_layer": 2, "n_head": 4},
        "2 of the 2 layers of this base .BloomForCausalLM. are not reached",
    ),
    "mamba": (
        "MambaConfig",
        {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2},
        "2 of the 2 layers of this base .MambaForCausalLM. are not reached",
    ),
}

Models = Callable[..., Any]


def saved(folder: Path, kind: str, arguments: dict[str, Any]) -> Path:
    """A random model in `folder`, its weights far enough from 0 for its layers to matter."""
    config = getattr(transformers, kind)(**arguments, initializer_range=0.2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {
        name: saved(tmp_path_factory.mktemp(name), kind, arguments)
        for name, (kind, arguments, _) in UNPACKABLE.items()
    }


def run(model: PackedModel, rows: Sequence[PackedRow], tokens: Gradients) -> tuple[Tensor, Tensor]:
    """Kept logits, and the log-probability of every answer."""
    batch = pack(rows, LENGTHS)
    logits = model.logits(batch, tokens)
    labels = logits.log_softmax(-1)[batch.label_kept, batch.label_ids]
    return logits, labels.new_zeros(batch.num_answers).index_add(0, batch.label_answer, labels)


def gradients(scores: Tensor, tokens: Gradients) -> tuple[Tensor, ...]:
    weights = torch.arange(1, len(scores) + 1, dtype=scores.dtype)
    return torch.autograd.grad(
        (scores * weights).sum(), list(tokens.values()), materialize_grads=True
    )


def largest(difference: Tensor) -> float:
    return float(difference.detach().abs().max())


@pytest.mark.parametrize("name", UNPACKABLE)
def test_a_base_that_cannot_be_packed_is_loaded_padded_says_why_and_equals_plain_runs(
    folders: dict[str, Path], name: str
) -> None:
    model, tokens = load_exact(folders[name]), random_tokens(LENGTHS)
    assert isinstance(model, PaddedModel)
    assert re.search(UNPACKABLE[name][2], model.fallback_reason or "")
    logits, scores = run(model, ROWS, tokens)
    found = gradients(scores, tokens)
    expected = plain_log_probs(model.model, ROWS, tokens)
    ends = [plain_logits(model.model, row, (), tokens)[-1] for row in ROWS]
    assert largest(logits[: len(ROWS)] - torch.stack(ends)) < 1e-5
    assert largest(scores - expected) < 1e-5
    for one, other in zip(found, gradients(expected, tokens), strict=True):
        assert largest(one - other) < 1e-5 * max(1, largest(other))
        assert largest(one) > 0


def test_a_base_that_can_be_packed_is_loaded_packed(tiny_base: Path) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        model = load_exact(tiny_base, dtype)
        assert not isinstance(model, PaddedModel)
        assert model.fallback_reason is None
        assert model.model.dtype == dtype


def test_a_folder_without_a_base_is_refused_all_the_same(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Unrecognized model"):
        load_exact(tmp_path)


@given(rows=lists_of_rows(VIRTUAL))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_rows_equal_their_packed_run_in_value_and_gradient(
    models: Models, rows: list[PackedRow]
) -> None:
    base, tokens = models("gpt2", torch.float64), random_tokens(LENGTHS, torch.float64)
    logits, scores = run(PaddedModel(base), rows, tokens)
    found = gradients(scores, tokens)
    expected, packed_scores = run(packed(base), rows, tokens)
    assert largest(logits - expected) < 1e-9
    for one, other in zip(found, gradients(packed_scores, tokens), strict=True):
        assert largest(one - other) < 1e-9


def test_a_broken_prompt_leaves_its_neighbours_alone(folders: dict[str, Path]) -> None:
    model, tokens = PaddedModel.load(folders["gemma2"]), random_tokens(LENGTHS)
    _, expected = run(model, ROWS, tokens)
    expected_gradient = gradients(expected, tokens)[1]
    with torch.no_grad():
        tokens["prefix"][0, 3] = float("nan")  # at packed position 0
    _, scores = run(model, ROWS, tokens)
    is_broken = torch.tensor([True, False, False, False, True, True, False, False])
    assert bool(scores[is_broken].isnan().all())
    assert torch.equal(scores[~is_broken], expected[~is_broken])
    assert torch.equal(gradients(scores, tokens)[1], expected_gradient)


def test_no_text_is_cached_and_cached_texts_are_refused(models: Models) -> None:
    model = PaddedModel(models("llama"))
    rows = [PackedRow("prefix", (5, 6, 7, *VIRTUAL["prefix"]), ((8,),))]
    cache = ContextCache(model, CacheBudget(1 << 30))
    assert cache.missing(rows, 16) == []
    assert not pack(rows, LENGTHS, cache).texts
    with pytest.raises(PackingError, match="pack the rows without a cache"):
        model.logits(pack(rows, LENGTHS, {rows[0].text}), random_tokens(LENGTHS))
    with pytest.raises(PackingError, match="gives no states"):
        model.states(pack([PackedRow(None, (5, 6, 7))], {}))


def test_one_forward_pass_a_batch_keeps_ranks_in_step(models: Models) -> None:
    base = models("llama")
    shapes: list[tuple[int, ...]] = []
    hook = base.lm_head.register_forward_hook(
        lambda module, args, output: shapes.append(tuple(output.shape))
    )
    batch = pack(ROWS, LENGTHS)
    PaddedModel(base).logits(batch, random_tokens(LENGTHS))
    hook.remove()
    assert shapes == [(1, len(batch.kept), 97)], "the head runs at kept positions alone"


def test_a_model_that_lies_about_its_logits_is_refused(models: Models) -> None:
    model = PaddedModel(models("llama"), "it was asked for")
    contexts = [(1, 2, 3), (4, 5)]
    expected = [model.plain_logits(context) for context in contexts]
    model.check_exact(contexts, expected)
    with pytest.raises(PackingError, match="gives other logits when rows are run together"):
        model.check_exact(contexts, expected[::-1])
