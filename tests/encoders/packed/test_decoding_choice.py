"""Choosing the next token: transformers' warpers, hashed draws, log-probabilities."""

import pytest
import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from encoders.packed.decoding_choice import (
    Sampling,
    choose_likeliest,
    choose_sampled,
    draw,
    warped_probabilities,
)

LOGITS = torch.randn(70, 50, generator=torch.Generator().manual_seed(2)) * 3


def test_the_likeliest_token_and_its_log_probability() -> None:
    tokens, log_probs = choose_likeliest(LOGITS)
    assert tokens == LOGITS.argmax(-1).tolist()
    assert log_probs == pytest.approx(LOGITS.log_softmax(-1).max(-1).values.tolist(), abs=1e-5)


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"temperature": 0.3},
        {"top_k": 5},
        {"top_p": 0.6},
        {"temperature": 2.0, "top_k": 20, "top_p": 0.4},
    ],
)
def test_tokens_are_drawn_by_what_transformers_draws_by(asked: dict[str, float]) -> None:
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=50,
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
        )
    )
    config = GenerationConfig(do_sample=True, **{"top_k": 0, **asked})
    processors = model._get_logits_processor(config, device="cpu")
    expected = processors(torch.zeros(70, 1, dtype=torch.long), LOGITS).softmax(-1)
    found = warped_probabilities(LOGITS, Sampling(**asked))  # type: ignore[arg-type]
    assert float((found - expected).abs().max()) < 1e-6
    assert torch.equal(found > 0, expected > 0)


def test_a_draw_picks_the_token_whose_share_it_falls_in() -> None:
    logits = torch.tensor([[0.5, 1e-30, 0.3, 0.2]]).log().expand(6, -1)
    draws = [0.0, 0.4999, 0.5001, 0.7999, 0.8001, 1 - 2**-53]
    tokens, log_probs = choose_sampled(logits, Sampling(), draws)
    assert tokens == [0, 0, 2, 2, 3, 3]
    assert [round(2.718281828**each, 3) for each in log_probs] == [0.5, 0.5, 0.3, 0.3, 0.2, 0.2]


def test_the_last_token_that_may_be_drawn_is_the_last_that_is() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0, 0.0]])
    tokens, _ = choose_sampled(logits, Sampling(top_k=2), [1 - 2**-53])
    assert tokens == [2]


def test_the_log_probability_is_the_models_own_whatever_is_drawn_by() -> None:
    tokens, log_probs = choose_sampled(LOGITS, Sampling(0.5, 3, 0.7), [0.5] * 70)
    expected = LOGITS.log_softmax(-1)[torch.arange(70), tokens]
    assert log_probs == pytest.approx(expected.tolist(), abs=1e-5)


def test_a_row_of_nans_draws_some_token() -> None:
    (token,), _ = choose_sampled(torch.full((1, 9), float("nan")), Sampling(), [0.3])
    assert 0 <= token < 9


def test_draws_follow_from_their_arguments_alone_and_are_spread_evenly() -> None:
    assert draw(1, 2, 3) == draw(1, 2, 3)
    assert len({draw(1, 2, 3), draw(2, 1, 3), draw(12, 3, 1), draw(1, 23, 1)}) == 4
    draws = torch.tensor([draw(0, row, step) for row in range(100) for step in range(100)])
    assert bool(((draws >= 0) & (draws < 1)).all())
    assert draws.histc(10, 0, 1).sub(1000).abs().max() < 150  # five deviations
