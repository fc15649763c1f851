from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from encoders.errors import EncoderError
from encoders.modules.prompt_init import (
    SCALE_SAMPLE,
    embedding_scale,
    fit_table,
    mean_of_prompts,
    sampled_tokens,
    token_table,
)
from tests.encoders.tiny_tokenizers import byte_bpe

WIDTH = 4


class CalledOnly(nn.Module):
    """Embeddings that a ZeRO-3 rank holds a part of: only a call gives rows."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.num_embeddings = len(table)
        self.num_calls = 0
        self._table = table

    @property
    def weight(self) -> Tensor:
        raise AssertionError("the weight of sharded embeddings was touched")

    def forward(self, ids: Tensor) -> Tensor:
        self.num_calls += 1
        return self._table[ids]


def embeddings(num_tokens: int = 10, dtype: torch.dtype = torch.float32) -> CalledOnly:
    generator = torch.Generator().manual_seed(0)
    return CalledOnly(torch.randn(num_tokens, WIDTH, generator=generator).to(dtype))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_token_table_is_what_one_call_of_the_embeddings_gives() -> None:
    module = embeddings(dtype=torch.bfloat16)
    table = token_table(module, [3, 1, 3])
    assert module.num_calls == 1
    assert table.dtype == torch.float32
    assert not table.requires_grad
    assert torch.equal(table, module(torch.tensor([3, 1, 3])).float())


def test_token_table_is_a_copy() -> None:
    module = nn.Embedding(5, WIDTH)
    before = module.weight.detach().clone()
    token_table(module, [0, 1]).zero_()
    assert torch.equal(module.weight, before)


@pytest.mark.parametrize("token_ids", [[], [10], [-1]])
def test_tokens_the_base_does_not_embed_are_refused(token_ids: list[int]) -> None:
    with pytest.raises(EncoderError, match="tokens|token id"):
        token_table(embeddings(), token_ids)


def test_embeddings_that_are_not_finite_are_refused() -> None:
    with pytest.raises(EncoderError, match="base's embeddings must hold finite"):
        token_table(CalledOnly(torch.full((3, WIDTH), torch.nan)), [0])


@pytest.mark.parametrize("length", [1, 3, 5, 11, 40])
def test_a_text_is_cut_or_repeated_as_pefts_text_start_does(length: int, tmp_path: Any) -> None:
    peft = pytest.importorskip("peft")
    tokenizer = byte_bpe()
    tokenizer.save_pretrained(tmp_path)
    base = nn.Embedding(len(tokenizer), WIDTH)
    text = "the capital of Kenya"
    config = peft.PromptTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=length,
        token_dim=WIDTH,
        num_transformer_submodules=1,
        prompt_tuning_init="TEXT",
        prompt_tuning_init_text=text,
        tokenizer_name_or_path=str(tmp_path),
    )
    theirs = peft.tuners.prompt_tuning.PromptEmbedding(config, base)
    ours = fit_table(token_table(base, tokenizer(text)["input_ids"]), length)
    assert torch.equal(ours, theirs.embedding.weight)


def test_sampled_tokens_are_decided_by_the_generator_alone() -> None:
    ids = range(100, 200)
    first = sampled_tokens(ids, 8, generator(1))
    torch.rand(10)
    assert sampled_tokens(ids, 8, generator(1)) == first
    assert sampled_tokens(ids, 8, generator(2)) != first
    assert set(first) <= set(ids)


def test_more_tokens_may_be_drawn_than_there_are() -> None:
    assert sampled_tokens([7], 3, generator()) == (7, 7, 7)


def test_drawing_from_no_tokens_is_refused() -> None:
    with pytest.raises(EncoderError, match="no tokens to draw from"):
        sampled_tokens([], 3, generator())


@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(1, 8))
@settings(max_examples=25, deadline=None)
def test_mean_of_prompts_is_the_mean_of_fitted_tables(lengths: list[int], rows: int) -> None:
    tables = [torch.randn(n, WIDTH, generator=generator(n)) for n in lengths]
    mean = mean_of_prompts(tables, rows)
    for v in range(rows):
        expected = sum(table[v % len(table)] for table in tables) / len(tables)
        assert torch.allclose(mean[v], torch.as_tensor(expected), atol=1e-6)


def test_one_prompt_of_the_right_length_comes_back_as_it_is() -> None:
    table = torch.randn(3, WIDTH, generator=generator())
    assert torch.equal(mean_of_prompts([table], 3), table)


@pytest.mark.parametrize(
    ("tables", "reason"),
    [
        ([], "no prompts"),
        ([torch.ones(2, 3), torch.ones(2, 4)], r"different bases: D is one of \[3, 4\]"),
        ([torch.ones(2, 3), torch.ones(3)], "prompt 1 must be a table"),
        ([torch.ones(0, 3)], "prompt 0 must be a table"),
        ([torch.tensor([[1.0, torch.inf]])], "prompt 0 must hold finite"),
        ([torch.ones(2, 3, dtype=torch.long)], "floating-point"),
    ],
)
def test_what_is_no_prompt_is_refused(tables: list[Tensor], reason: str) -> None:
    with pytest.raises(EncoderError, match=reason):
        mean_of_prompts(tables, 2)


@pytest.mark.parametrize("rows", [0, -1])
def test_a_prompt_has_at_least_one_token(rows: int) -> None:
    with pytest.raises(EncoderError, match="1 or more"):
        fit_table(torch.ones(2, 2), rows)
    with pytest.raises(EncoderError, match="1 or more"):
        sampled_tokens([1], rows, generator())


@pytest.mark.parametrize("num_tokens", [1, SCALE_SAMPLE, SCALE_SAMPLE + 1, 5 * SCALE_SAMPLE])
def test_embedding_scale_is_the_root_mean_square_by_one_call(num_tokens: int) -> None:
    module = CalledOnly(torch.randn(num_tokens, WIDTH, generator=generator()) * 0.2)
    scale = embedding_scale(module, range(num_tokens))
    assert module.num_calls == 1
    assert scale == pytest.approx(float(module._table.square().mean().sqrt()), rel=0.05)


def test_embedding_scale_of_no_tokens_is_refused() -> None:
    with pytest.raises(EncoderError, match="no tokens"):
        embedding_scale(embeddings(), [])
