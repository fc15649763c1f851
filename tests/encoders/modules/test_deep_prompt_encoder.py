from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from encoders.config import PromptEncoderConfig
from encoders.errors import ConfigError
from encoders.modules.deep_prompt_encoder import DeepPromptEncoder, DeepPromptEncoderConfig
from encoders.modules.prompt_encoder import PromptEncoder


def encoder_of(**fields: Any) -> DeepPromptEncoder:
    return DeepPromptEncoder(
        DeepPromptEncoderConfig(**{"num_virtual_tokens": 3, "token_dim": 8, **fields})
    )


@given(st.integers(1, 5), st.integers(1, 9), st.integers(1, 9), st.integers(2, 6))
@settings(max_examples=20, deadline=None)
def test_network_is_linear_layers_of_the_width_with_relus_between(
    num_tokens: int, token_dim: int, hidden_size: int, num_layers: int
) -> None:
    encoder = encoder_of(
        num_virtual_tokens=num_tokens,
        token_dim=token_dim,
        hidden_size=hidden_size,
        num_layers=num_layers,
    )
    sizes = [token_dim, *[hidden_size] * (num_layers - 1), token_dim]
    linear = [layer for layer in encoder.mlp_head if isinstance(layer, nn.Linear)]
    assert [layer.in_features for layer in linear] == sizes[:-1]
    assert [layer.out_features for layer in linear] == sizes[1:]
    expected = encoder.embedding.weight
    for layer in linear[:-1]:
        expected = layer(expected).relu()
    assert torch.equal(encoder.virtual_tokens(), linear[-1](expected))
    assert encoder.virtual_tokens().shape == (num_tokens, token_dim)


def test_three_layers_are_p_tunings_mlp() -> None:
    deep = encoder_of(hidden_size=5, num_layers=3)
    config = PromptEncoderConfig(num_virtual_tokens=3, token_dim=8, encoder_hidden_size=5)
    p_tuning = PromptEncoder(config)
    p_tuning.load_state_dict(deep.state_dict())
    assert torch.equal(p_tuning.virtual_tokens(), deep.virtual_tokens())


def test_virtual_tokens_are_all_rows_of_forward_and_every_weight_takes_a_gradient() -> None:
    encoder = encoder_of(num_layers=4)
    assert torch.equal(encoder(torch.arange(3)[None])[0], encoder.virtual_tokens())
    encoder.virtual_tokens().sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())


@pytest.mark.parametrize(("token_dim", "width"), [(8, 4), (9, 4), (1, 1)])
def test_width_is_half_of_token_dim_unless_given(token_dim: int, width: int) -> None:
    assert DeepPromptEncoderConfig(3, token_dim).width == width
    assert DeepPromptEncoderConfig(3, token_dim, hidden_size=7).width == 7


def test_init_std_sets_the_spread_of_the_table() -> None:
    torch.manual_seed(0)
    table = encoder_of(num_virtual_tokens=100, token_dim=100).embedding.weight
    assert table.std().item() == pytest.approx(0.023, rel=0.05)
    assert not encoder_of(init_std=0.0).embedding.weight.any()


@pytest.mark.parametrize(
    "fields",
    [
        {"num_virtual_tokens": 0},
        {"num_virtual_tokens": True},
        {"token_dim": -1},
        {"token_dim": "8"},
        {"token_dim": 1 << 24, "num_virtual_tokens": 1 << 24},
        {"hidden_size": 0},
        {"hidden_size": 2.0},
        {"num_layers": 1},
        {"num_layers": None},
        {"init_std": -0.1},
        {"init_std": float("nan")},
        {"init_std": float("inf")},
        {"init_std": None},
    ],
    ids=str,
)
def test_a_config_nothing_can_be_built_from_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        encoder_of(**fields)
