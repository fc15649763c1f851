from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig

from encoders.config import PrefixTuningConfig
from encoders.errors import ConfigError, WeightsError
from encoders.modules.prefix_encoder import PrefixEncoder
from tests.encoders.parity import assert_modules_equal

peft = pytest.importorskip("peft")

SIZES = {"num_virtual_tokens": 3, "token_dim": 4, "num_layers": 2, "encoder_hidden_size": 5}


def both(seed: int, **fields: Any) -> tuple[PrefixEncoder, torch.nn.Module]:
    torch.manual_seed(seed)
    ours = PrefixEncoder(PrefixTuningConfig(**fields))
    torch.manual_seed(seed)
    return ours, peft.PrefixEncoder(peft.PrefixTuningConfig(**fields))


@given(
    st.fixed_dictionaries(
        {
            "num_virtual_tokens": st.integers(1, 6),
            "token_dim": st.integers(1, 9),
            "num_layers": st.integers(1, 4),
            "encoder_hidden_size": st.integers(1, 9),
            "num_transformer_submodules": st.integers(1, 2),
            "prefix_projection": st.booleans(),
            "init_weights": st.sampled_from([None, "zero"]),
        }
    ),
    st.integers(0, 2**31),
)
@settings(max_examples=40, deadline=None)
def test_encoder_equals_pefts_bit_for_bit(fields: dict[str, Any], seed: int) -> None:
    ours, theirs = both(seed, **fields)
    assert_modules_equal(ours, theirs, torch.arange(fields["num_virtual_tokens"])[None])
    assert torch.equal(ours.prefix(), ours(torch.arange(fields["num_virtual_tokens"])[None])[0])


@pytest.mark.parametrize("prefix_projection", [True, False])
def test_zero_start_is_a_prefix_of_zeros_that_can_be_trained(prefix_projection: bool) -> None:
    encoder = PrefixEncoder(
        PrefixTuningConfig(**SIZES, init_weights="zero", prefix_projection=prefix_projection)
    )
    assert not encoder.prefix().any()
    encoder.prefix().sum().backward()
    last = encoder.embedding if encoder.transform is None else encoder.transform[-1]
    assert last.weight.grad.any()  # type: ignore[union-attr, operator]


def test_sizes_of_grouped_query_attention_equal_pefts() -> None:
    base = LlamaConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2
    )
    theirs = peft.utils._prepare_prompt_learning_config(
        peft.PrefixTuningConfig(num_virtual_tokens=3), base
    )
    torch.manual_seed(0)
    ours = PrefixEncoder(PrefixTuningConfig(num_virtual_tokens=3).completed(base))
    torch.manual_seed(0)
    assert_modules_equal(ours, peft.PrefixEncoder(theirs), torch.arange(3)[None])
    assert ours.prefix().shape == (3, 2 * 2 * 16)


@pytest.mark.parametrize("prefix_projection", [True, False])
def test_inference_mode_is_the_whole_table(prefix_projection: bool) -> None:
    fields = {**SIZES, "prefix_projection": prefix_projection, "inference_mode": True}
    ours, theirs = both(0, **fields)
    assert list(ours.state_dict()) == list(theirs.state_dict()) == ["embedding.weight"]
    assert torch.equal(ours.prefix(), theirs.embedding.weight)  # type: ignore[arg-type, union-attr]
    assert torch.equal(ours(torch.arange(3)[None])[0], ours.prefix())


def test_a_saved_prefix_loads() -> None:
    encoder = PrefixEncoder(PrefixTuningConfig(**SIZES))
    saved = torch.randn(3, 16)
    encoder.load_prompt_embeddings(saved.double())
    assert torch.equal(encoder.prefix(), saved)
    assert encoder.prefix().requires_grad
    bare = PrefixEncoder(PrefixTuningConfig(**SIZES, prefix_projection=True, inference_mode=True))
    bare.load_prompt_embeddings(saved)
    assert torch.equal(bare.prefix(), saved)


@pytest.mark.parametrize(("projection", "shape"), [(True, (3, 16)), (False, (3, 15))])
def test_a_prefix_that_cannot_load_is_the_value_error_of_peft(
    projection: bool, shape: tuple[int, int]
) -> None:
    ours, theirs = both(0, **SIZES, prefix_projection=projection)
    with pytest.raises(WeightsError, match="prompt.embeddings") as mine:
        ours.load_prompt_embeddings(torch.zeros(shape))
    with pytest.raises(ValueError, match="prompt.embeddings") as other:
        theirs.load_prompt_embeddings(torch.zeros(shape))  # type: ignore[operator]
    assert str(mine.value) == str(other.value)


@pytest.mark.parametrize("missing", ["num_virtual_tokens", "token_dim", "num_layers"])
def test_a_config_without_a_size_is_refused(missing: str) -> None:
    with pytest.raises(ConfigError, match=f"{missing} is missing"):
        PrefixEncoder(PrefixTuningConfig(**{**SIZES, missing: None}))


def test_the_width_of_the_projection_is_token_dim_unless_given() -> None:
    config = PrefixTuningConfig(
        num_virtual_tokens=3, token_dim=4, num_layers=2, prefix_projection=True
    )
    assert PrefixEncoder(config).state_dict()["transform.0.weight"].shape == (4, 4)
