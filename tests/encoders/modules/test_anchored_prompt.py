from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn

from encoders.config import PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig
from encoders.errors import EncoderError
from encoders.files.weights_file import dump_tensors, load_tensors
from encoders.modules.anchored_prompt import AnchoredPrompt
from encoders.modules.deep_prompt_encoder import DeepPromptEncoder, DeepPromptEncoderConfig
from encoders.modules.prefix_encoder import PrefixEncoder
from encoders.modules.prompt_embedding import PromptEmbedding
from encoders.modules.prompt_encoder import PromptEncoder
from encoders.modules.prompt_init import embedding_scale
from tests.encoders.conftest import VOCABULARY, WIDTH, make_model

SCALE = 0.13


def p_tuning(rows: int, width: int, **fields: Any) -> PromptEncoder:
    return PromptEncoder(PromptEncoderConfig(num_virtual_tokens=rows, token_dim=width, **fields))


def prefix(rows: int, width: int, **fields: Any) -> PrefixEncoder:
    """A prefix whose rows are `width` values: one layer's keys and values."""
    sizes = {"token_dim": width // 2, "num_layers": 1, "num_attention_heads": 1}
    return PrefixEncoder(PrefixTuningConfig(num_virtual_tokens=rows, **sizes, **fields))


ENCODERS: dict[str, Callable[[int, int], nn.Module]] = {
    "mlp": p_tuning,
    "lstm": lambda v, d: p_tuning(v, d, encoder_reparameterization_type="LSTM"),
    "deep": lambda v, d: DeepPromptEncoder(DeepPromptEncoderConfig(v, d, num_layers=3)),
    "table": lambda v, d: PromptEmbedding(PromptTuningConfig(num_virtual_tokens=v, token_dim=d)),
    "prefix": prefix,
    "prefix with projection": lambda v, d: prefix(v, d, prefix_projection=True),
}
KINDS = pytest.mark.parametrize("kind", ENCODERS)


def table(rows: int, width: int, seed: int = 5) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)) * SCALE


def anchored(kind: str, rows: int = 3, width: int = 8) -> AnchoredPrompt:
    torch.manual_seed(0)
    return AnchoredPrompt(table(rows, width), ENCODERS[kind](rows, width), SCALE)


@given(st.sampled_from(list(ENCODERS)), st.integers(1, 6), st.integers(1, 6), st.integers(0, 99))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_the_first_tokens_are_the_anchor_exactly(
    kind: str, rows: int, half: int, seed: int
) -> None:
    torch.manual_seed(seed)
    anchor = table(rows, 2 * half, seed)
    prompt = AnchoredPrompt(anchor, ENCODERS[kind](rows, 2 * half), SCALE)
    with torch.no_grad():
        assert torch.equal(prompt.virtual_tokens(), anchor)
    # An LSTM's kernel that keeps what a gradient needs rounds otherwise.
    assert torch.allclose(prompt.virtual_tokens(), anchor, atol=1e-6 if kind == "lstm" else 0)
    indices = torch.arange(rows).expand(2, -1)
    assert torch.allclose(prompt(indices), anchor.expand(2, -1, -1), atol=1e-6)


@KINDS
def test_every_weight_of_the_encoder_learns_at_once_and_nothing_else(kind: str) -> None:
    prompt = anchored(kind)
    assert all(name.startswith("encoder.") for name, _ in prompt.named_parameters())
    (prompt.virtual_tokens() * table(3, 8, seed=1)).sum().backward()
    for name, parameter in prompt.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@KINDS
def test_a_step_moves_the_tokens_and_keeps_the_anchor(kind: str) -> None:
    prompt = anchored(kind)
    optimizer = torch.optim.SGD(prompt.parameters(), lr=0.1)
    (prompt.virtual_tokens() * table(3, 8, seed=1)).sum().backward()
    optimizer.step()
    assert torch.equal(prompt.anchor, table(3, 8))
    assert not torch.allclose(prompt.virtual_tokens(), table(3, 8))


@KINDS
def test_the_prompt_moves_by_the_scale_where_the_encoder_moves_by_its_own_size(kind: str) -> None:
    prompt = anchored(kind)
    last = list(prompt.encoder.parameters())[-1]  # adds to the output, a row of it or all of it
    with torch.no_grad():
        size = prompt.start.square().mean().sqrt()
        last += size
    moved = prompt.virtual_tokens() - prompt.anchor
    assert torch.allclose(moved, torch.full_like(moved, SCALE), rtol=1e-4)


@KINDS
def test_its_state_dict_brings_it_back(kind: str) -> None:
    trained = anchored(kind)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.mul_(1.5)
    torch.manual_seed(9)
    other = AnchoredPrompt(torch.ones(3, 8), ENCODERS[kind](3, 8), 1.0)
    shapes = {name: tuple(weight.shape) for name, weight in other.state_dict().items()}
    other.load_state_dict(load_tensors(dump_tensors(trained.state_dict()), shapes))
    assert torch.equal(other.virtual_tokens(), trained.virtual_tokens())


def test_dropout_is_off_at_the_start_and_the_encoders_mode_stays() -> None:
    fields = {"encoder_reparameterization_type": "LSTM", "encoder_dropout": 0.9}
    encoder = p_tuning(3, 8, **fields).train()
    prompt = AnchoredPrompt(table(3, 8), encoder, SCALE)
    assert encoder.training
    assert torch.allclose(prompt.eval().virtual_tokens(), table(3, 8), atol=1e-6)
    assert not torch.allclose(prompt.train().virtual_tokens(), table(3, 8), atol=1e-4)


def test_a_half_precision_table_anchors_a_float_encoder() -> None:
    half = table(3, 8).to(torch.float16)
    assert torch.equal(AnchoredPrompt(half, p_tuning(3, 8), SCALE).virtual_tokens(), half.float())


def test_the_anchor_is_a_copy() -> None:
    anchor = table(3, 8)
    prompt = AnchoredPrompt(anchor, p_tuning(3, 8), SCALE)
    anchor.zero_()
    assert torch.equal(prompt.virtual_tokens(), table(3, 8))


def test_an_anchored_prompt_can_be_anchored_again_by_its_table() -> None:
    prompt = anchored("mlp")
    again = AnchoredPrompt(prompt.virtual_tokens(), prompt.encoder, SCALE)
    assert torch.equal(again.virtual_tokens(), prompt.virtual_tokens())


@pytest.mark.parametrize(
    ("anchor", "reason"),
    [
        (torch.ones(2, 8), r"anchor is \(2, 8\), but the encoder emits \(3, 8\)"),
        (torch.ones(4, 8), r"\(4, 8\).*\(3, 8\)"),
        (torch.ones(3, 6), r"\(3, 6\).*\(3, 8\)"),
        (torch.ones(8), "must be a table"),
        (torch.full((3, 8), torch.nan), "finite"),
        (torch.ones(3, 8, dtype=torch.long), "floating-point"),
    ],
)
def test_anchors_that_do_not_fit_are_refused(anchor: Tensor, reason: str) -> None:
    with pytest.raises(EncoderError, match=reason):
        AnchoredPrompt(anchor, p_tuning(3, 8), SCALE)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_scales_that_are_no_size_are_refused(scale: float) -> None:
    with pytest.raises(EncoderError, match="scale"):
        AnchoredPrompt(table(3, 8), p_tuning(3, 8), scale)


def test_an_encoder_that_starts_at_zero_has_no_size() -> None:
    with pytest.raises(EncoderError, match=r"size 0\.0: give it random weights"):
        AnchoredPrompt(table(3, 8), prefix(3, 8, init_weights="zero"), SCALE)


def test_a_module_that_is_no_encoder_is_refused() -> None:
    with pytest.raises(EncoderError, match="Linear is no encoder"):
        AnchoredPrompt(table(3, 8), nn.Linear(8, 8), SCALE)


def peft_adapter(folder: Path, peft_type: str) -> tuple[Any, Tensor]:
    """Train a PEFT adapter for two steps, save it; returns the PEFT model and the file's table."""
    peft = pytest.importorskip("peft")
    config = peft.get_peft_config(
        {"peft_type": peft_type, "task_type": "CAUSAL_LM", "num_virtual_tokens": 5}
    )
    torch.manual_seed(3)
    model = peft.get_peft_model(make_model("llama"), config)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(2):
        model(input_ids=batch(), labels=batch()).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    return model.eval(), load_file(folder / "adapter_model.safetensors")["prompt_embeddings"]


def batch() -> Tensor:
    return torch.randint(VOCABULARY, (4, 7), generator=torch.Generator().manual_seed(2))


def prompted(base: Any, prompt: AnchoredPrompt) -> tuple[Tensor, Tensor]:
    """Logits at the text's positions, and the loss of PEFT's causal form."""
    text = base.get_input_embeddings()(batch())
    embeds = torch.cat([prompt.virtual_tokens().expand(len(text), -1, -1), text], dim=1)
    logits = base(inputs_embeds=embeds).logits[:, len(prompt.anchor) :]
    return logits, nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), batch()[:, 1:].flatten()
    )


@pytest.mark.parametrize("peft_type", ["P_TUNING", "PROMPT_TUNING"])
@pytest.mark.parametrize("kind", ["MLP", "LSTM"])
def test_a_published_peft_adapter_becomes_trainable_again(
    tmp_path: Path, peft_type: str, kind: str
) -> None:
    theirs, published = peft_adapter(tmp_path, peft_type)
    base = make_model("llama").requires_grad_(False)
    torch.manual_seed(0)
    encoder = p_tuning(5, WIDTH, encoder_reparameterization_type=kind, encoder_hidden_size=16)
    scale = embedding_scale(base.get_input_embeddings(), range(VOCABULARY))
    prompt = AnchoredPrompt(published, encoder, scale)

    with torch.no_grad():
        expected = theirs(input_ids=batch()).logits[:, 5:]
    logits, first_loss = prompted(base, prompt)
    assert (logits - expected).abs().max() <= 1e-6

    optimizer = torch.optim.AdamW(prompt.parameters(), lr=1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        prompted(base, prompt)[1].backward()
        optimizer.step()
    assert prompted(base, prompt)[1] < first_loss - 0.01
