import warnings

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from encoders.config import PromptEncoderConfig, PromptEncoderReparameterizationType
from encoders.errors import ConfigError
from encoders.modules.prompt_encoder import PromptEncoder
from tests.encoders.parity import assert_modules_equal

peft = pytest.importorskip("peft")


def peft_encoder(**fields: object) -> torch.nn.Module:
    """PEFT's own encoder, which wants a few fields more."""
    config = peft.PromptEncoderConfig(
        task_type="CAUSAL_LM", num_attention_heads=1, num_layers=1, **fields
    )
    return peft.PromptEncoder(config)


def both(seed: int, **fields: object) -> tuple[PromptEncoder, torch.nn.Module]:
    torch.manual_seed(seed)
    ours = PromptEncoder(PromptEncoderConfig(**fields))  # type: ignore[arg-type]
    torch.manual_seed(seed)
    theirs = peft_encoder(**{"num_transformer_submodules": 1, **fields})
    return ours, theirs


sizes = st.fixed_dictionaries(
    {
        "num_virtual_tokens": st.integers(1, 7),
        "token_dim": st.integers(1, 12),
        "encoder_hidden_size": st.integers(1, 9),
        "num_transformer_submodules": st.integers(1, 2),
    }
)


@given(sizes, st.sampled_from(["MLP", "LSTM"]), st.integers(0, 2**31))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_encoder_equals_pefts_bit_for_bit(sizes: dict[str, int], kind: str, seed: int) -> None:
    ours, theirs = both(seed, encoder_reparameterization_type=kind, **sizes)
    num_rows = sizes["num_virtual_tokens"] * sizes["num_transformer_submodules"]
    assert_modules_equal(ours, theirs, torch.arange(num_rows).unsqueeze(0))


@pytest.mark.parametrize("num_layers", [1, 3])
def test_deep_lstm_equals_pefts(num_layers: int) -> None:
    ours, theirs = both(
        3,
        num_virtual_tokens=4,
        token_dim=6,
        encoder_hidden_size=5,
        encoder_reparameterization_type="LSTM",
        encoder_num_layers=num_layers,
    )
    assert torch.equal(ours(torch.arange(4)[None]), theirs(torch.arange(4)[None]))


def test_lstm_dropout_draws_what_pefts_draws() -> None:
    fields = {"num_virtual_tokens": 4, "token_dim": 6, "encoder_hidden_size": 5}
    lstm = {"encoder_reparameterization_type": "LSTM", "encoder_dropout": 0.5}
    ours, theirs = both(3, **fields, **lstm)
    torch.manual_seed(9)
    mine = ours.train().virtual_tokens()
    torch.manual_seed(9)
    assert torch.equal(mine, theirs.train()(torch.arange(4)[None])[0])
    assert torch.equal(ours.eval().virtual_tokens(), theirs.eval()(torch.arange(4)[None])[0])


def test_weights_of_peft_load_and_ours_load_in_peft() -> None:
    ours, theirs = both(0, num_virtual_tokens=3, token_dim=4, encoder_hidden_size=4)
    torch.manual_seed(1)
    other = PromptEncoder(PromptEncoderConfig(num_virtual_tokens=3, token_dim=4))
    other.load_state_dict(theirs.state_dict())
    assert torch.equal(other.virtual_tokens(), ours.virtual_tokens())
    theirs.load_state_dict(ours.state_dict())


def test_inference_mode_is_the_table_alone_as_in_peft() -> None:
    ours, theirs = both(0, num_virtual_tokens=3, token_dim=4, inference_mode=True)
    assert list(ours.state_dict()) == list(theirs.state_dict()) == ["embedding.weight"]
    assert torch.equal(ours.virtual_tokens(), ours.embedding.weight)


def test_virtual_tokens_are_all_rows_of_forward() -> None:
    torch.manual_seed(0)
    encoder = PromptEncoder(
        PromptEncoderConfig(num_virtual_tokens=3, token_dim=4, num_transformer_submodules=2)
    )
    tokens = encoder.virtual_tokens()
    assert tokens.shape == (6, 4)
    assert torch.equal(tokens, encoder(torch.arange(6)[None])[0])


@pytest.mark.parametrize("kind", ["MLP", "mlp", "LSTM", "lstm", "Lstm"])
def test_kinds_may_be_strings_in_any_case(kind: str) -> None:
    config = PromptEncoderConfig(
        num_virtual_tokens=2, token_dim=4, encoder_reparameterization_type=kind
    )
    assert config.encoder_reparameterization_type is PromptEncoderReparameterizationType(
        kind.upper()
    )
    encoder = PromptEncoder(config)
    assert (encoder.lstm_head is not None) == (kind.upper() == "LSTM")


def test_unknown_kind_is_the_value_error_of_peft() -> None:
    fields = {"num_virtual_tokens": 2, "token_dim": 4}
    config = PromptEncoderConfig(**fields)
    config.encoder_reparameterization_type = "GRU"
    with pytest.raises(ValueError, match="not recognized") as ours:
        PromptEncoder(config)
    with pytest.raises(ValueError, match="not recognized") as theirs:
        peft_encoder(num_transformer_submodules=1, encoder_reparameterization_type="GRU", **fields)
    assert str(ours.value) == str(theirs.value)
    with pytest.raises(ValueError, match="not recognized"):
        PromptEncoderConfig(encoder_reparameterization_type="GRU")


@pytest.mark.parametrize("missing", ["num_virtual_tokens", "token_dim"])
def test_a_config_without_a_size_is_refused(missing: str) -> None:
    fields = {"num_virtual_tokens": 2, "token_dim": 4, missing: None}
    with pytest.raises(ConfigError, match=f"{missing} is missing"):
        PromptEncoder(PromptEncoderConfig(**fields))


def test_layers_of_an_mlp_warn_as_in_peft() -> None:
    fields = {"num_virtual_tokens": 2, "token_dim": 4, "encoder_hidden_size": 4}
    fields["encoder_num_layers"] = 3
    with pytest.warns(UserWarning, match="ignored") as ours:
        PromptEncoder(PromptEncoderConfig(**fields))
    enum = peft.PromptEncoderReparameterizationType.MLP
    with pytest.warns(UserWarning, match="ignored") as theirs:
        peft_encoder(num_transformer_submodules=1, encoder_reparameterization_type=enum, **fields)
    assert str(ours[0].message).partition(",")[2] == str(theirs[0].message).partition(",")[2]
    assert ours[0].filename == __file__


def test_a_string_kind_with_odd_layers_does_not_crash_as_peft_does() -> None:
    with pytest.warns(UserWarning, match="MLP"):
        PromptEncoder(
            PromptEncoderConfig(
                num_virtual_tokens=2,
                token_dim=4,
                encoder_reparameterization_type="MLP",
                encoder_num_layers=5,
            )
        )


@pytest.mark.parametrize("kind", ["MLP", "LSTM"])
def test_usual_configs_do_not_warn(kind: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config = PromptEncoderConfig(
            num_virtual_tokens=2, token_dim=4, encoder_reparameterization_type=kind
        )
        PromptEncoder(config)
    assert PromptEncoder(config).hidden_size == 4


def test_parameter_count_is_the_one_peft_documents() -> None:
    with torch.device("meta"):
        encoder = PromptEncoder(PromptEncoderConfig(num_virtual_tokens=20, token_dim=3072))
    assert sum(parameter.numel() for parameter in encoder.parameters()) == 28_382_208
