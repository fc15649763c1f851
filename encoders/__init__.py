"""Prompt encoders for frozen base models: pure PyTorch, with PEFT's names.

Needs torch, transformers and safetensors, and nothing else. Names load on first use, so that
`encoders.template` can be used where torch is not wanted.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "PackedModel": "encoders.packed_model",
    "PromptEmbedding": "encoders.prompt_embedding",
    "PromptEncoder": "encoders.prompt_encoder",
    "PromptEncoderConfig": "encoders.config",
    "PromptEncoderReparameterizationType": "encoders.config",
    "Template": "encoders.template",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
