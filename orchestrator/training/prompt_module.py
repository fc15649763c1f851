"""Builds a task's prompt encoder from its spec, the same for the same seed whatever runs beside."""

import torch

from encoders.config import PromptEncoderConfig, PromptTuningConfig
from encoders.modules.anchored_prompt import AnchoredPrompt
from encoders.modules.prompt_embedding import PromptEmbedding
from encoders.modules.prompt_encoder import PromptEncoder
from encoders.modules.prompt_init import fit_table
from orchestrator.domain.task_spec import EncoderSpec
from orchestrator.training.prompt_start import PromptStart


def build_prompt(
    spec: EncoderSpec,
    num_virtual_tokens: int,
    token_dim: int,
    seed: int,
    start: PromptStart | None = None,
) -> torch.nn.Module:
    """A new encoder, its weights drawn from `seed` alone; the global generator is untouched.

    With a `start` its first virtual tokens are those; EncoderError if they do not fit.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = _new_encoder(spec, num_virtual_tokens, token_dim)
    if start is None:
        assert spec.init is None, "the spec's start was not looked up"
        return encoder
    anchor = fit_table(start.table, num_virtual_tokens)
    if isinstance(encoder, PromptEmbedding):
        encoder.embedding.weight = torch.nn.Parameter(anchor)
        return encoder
    return AnchoredPrompt(anchor, encoder, start.scale)


def num_learned(spec: EncoderSpec, num_virtual_tokens: int, token_dim: int) -> int:
    """How many numbers an encoder learns, without building it."""
    with torch.device("meta"):
        encoder = _new_encoder(spec, num_virtual_tokens, token_dim)
    return sum(parameter.numel() for parameter in encoder.parameters())


def _new_encoder(spec: EncoderSpec, num_virtual_tokens: int, token_dim: int) -> torch.nn.Module:
    if spec.type == "embedding":
        table = PromptTuningConfig(num_virtual_tokens=num_virtual_tokens, token_dim=token_dim)
        return PromptEmbedding(table)
    config = PromptEncoderConfig(
        num_virtual_tokens=num_virtual_tokens,
        token_dim=token_dim,
        encoder_reparameterization_type=spec.type,
        encoder_hidden_size=spec.hidden_size,
        encoder_num_layers=spec.num_layers,
        encoder_dropout=spec.dropout,
    )
    return PromptEncoder(config)
