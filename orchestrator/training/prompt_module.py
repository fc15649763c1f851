"""Builds a task's prompt encoder from its spec, the same for the same seed whatever runs beside."""

from typing import Protocol, cast

import torch
from torch import Tensor

from encoders.config import PromptEncoderConfig
from encoders.prompt_embedding import PromptEmbedding
from encoders.prompt_encoder import PromptEncoder
from orchestrator.domain.task_spec import EncoderSpec


class PromptModule(Protocol):
    """A torch module that emits all virtual tokens [V, D] of one prompt."""

    def virtual_tokens(self) -> Tensor: ...


def build_prompt(
    spec: EncoderSpec, num_virtual_tokens: int, token_dim: int, seed: int
) -> torch.nn.Module:
    """A new encoder, its weights drawn from `seed` alone; the global generator is untouched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if spec.type == "embedding":
            return PromptEmbedding(num_virtual_tokens, token_dim)
        config = PromptEncoderConfig(
            num_virtual_tokens=num_virtual_tokens,
            token_dim=token_dim,
            encoder_reparameterization_type=spec.type,
            encoder_hidden_size=spec.hidden_size,
            encoder_num_layers=spec.num_layers,
            encoder_dropout=spec.dropout,
        )
        return PromptEncoder(config)


def virtual_tokens_of(module: torch.nn.Module) -> Tensor:
    """The module's virtual tokens [V, D], with gradient."""
    return cast(PromptModule, module).virtual_tokens()
