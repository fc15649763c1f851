import pytest
import torch

from encoders.config import PromptEncoderConfig
from encoders.errors import EncoderError
from encoders.modules.anchored_prompt import AnchoredPrompt
from encoders.modules.prompt_embedding import PromptEmbedding
from encoders.modules.prompt_encoder import PromptEncoder
from orchestrator.domain.task_spec import EncoderSpec
from orchestrator.training.prompt_module import build_prompt
from orchestrator.training.prompt_start import PromptStart

KINDS = ("mlp", "lstm", "embedding")


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_weights_whatever_was_drawn_before(kind: str) -> None:
    spec = EncoderSpec(type=kind, hidden_size=5)  # type: ignore[arg-type]
    first = build_prompt(spec, 3, 4, seed=7)
    torch.rand(100)
    again, other = build_prompt(spec, 3, 4, seed=7), build_prompt(spec, 3, 4, seed=8)
    assert torch.equal(first.virtual_tokens(), again.virtual_tokens())
    assert not torch.equal(first.virtual_tokens(), other.virtual_tokens())
    assert first.virtual_tokens().shape == (3, 4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_global_generator_is_left_alone(kind: str) -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    build_prompt(EncoderSpec(type=kind), 3, 4, seed=7)  # type: ignore[arg-type]
    assert torch.equal(torch.rand(3), expected)


def test_weights_are_those_pefts_names_and_seed_give() -> None:
    spec = EncoderSpec(type="lstm", hidden_size=5, num_layers=1, dropout=0.0)
    torch.manual_seed(7)
    expected = PromptEncoder(
        PromptEncoderConfig(
            num_virtual_tokens=3,
            token_dim=4,
            encoder_reparameterization_type="LSTM",
            encoder_hidden_size=5,
            encoder_num_layers=1,
        )
    ).state_dict()
    found = build_prompt(spec, 3, 4, seed=7).state_dict()
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_an_embedding_is_a_bare_table() -> None:
    prompt = build_prompt(EncoderSpec(type="embedding"), 3, 4, seed=7)
    assert isinstance(prompt, PromptEmbedding)
    assert sum(parameter.numel() for parameter in prompt.parameters()) == 12


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_begins_at_its_start_cut_or_repeated(kind: str) -> None:
    table = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    spec = EncoderSpec(type=kind, hidden_size=5)  # type: ignore[arg-type]
    prompt = build_prompt(spec, 3, 4, seed=7, start=PromptStart(table, 0.1))
    with torch.no_grad():
        assert torch.equal(prompt.virtual_tokens(), table[[0, 1, 0]])
    assert isinstance(prompt, PromptEmbedding if kind == "embedding" else AnchoredPrompt)
    prompt.virtual_tokens().square().sum().backward()
    assert all(parameter.grad is not None for parameter in prompt.parameters())


def test_the_encoder_of_an_anchored_prompt_has_the_weights_of_its_seed() -> None:
    spec = EncoderSpec(hidden_size=5)
    prompt = build_prompt(spec, 3, 4, seed=7, start=PromptStart(torch.ones(3, 4), 0.1))
    assert isinstance(prompt, AnchoredPrompt)
    plain = build_prompt(spec, 3, 4, seed=7).state_dict()
    found = prompt.encoder.state_dict()
    assert list(found) == list(plain)
    assert all(torch.equal(found[name], plain[name]) for name in plain)


def test_a_start_of_another_width_is_refused() -> None:
    with pytest.raises(EncoderError, match=r"anchor is \(3, 6\)"):
        build_prompt(EncoderSpec(), 3, 4, seed=7, start=PromptStart(torch.ones(3, 6), 0.1))
