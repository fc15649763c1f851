"""Whole inputs as embeddings [seq, hidden], as vLLM takes them under `--enable-prompt-embeds`.

Shapes: V virtual tokens, D the base's embedding size (hidden).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from encoders.errors import TemplateError, WeightsError
from encoders.files.durable_file import write_durably
from encoders.files.weights_file import check_finite, dump_tensors, open_weights
from encoders.files.weights_header import PROMPT_DTYPES, TensorEntry

KIND = "prompt_embeds"


@torch.no_grad()
def make_prompt_embeds(base: Any, virtual_tokens: Tensor, token_ids: Sequence[int]) -> Tensor:
    """Embeddings [seq, D] of one input, in the base's dtype.

    A negative id `-(i + 1)` stands for virtual token i, as templates encode them; where there is
    none, the prompt comes first, as in PEFT. Raises TemplateError for ids, and WeightsError for
    virtual tokens [V, D], that do not fit the transformers model `base`.
    """
    check_width(base, virtual_tokens)
    embedding = base.get_input_embeddings()
    ids = torch.tensor(list(token_ids), dtype=torch.long, device=embedding.weight.device)
    if not (ids < 0).any():
        ids = torch.cat([-1 - torch.arange(len(virtual_tokens), device=ids.device), ids])
    if (ids >= embedding.num_embeddings).any() or (ids < -len(virtual_tokens)).any():
        raise TemplateError(
            f"the token ids go from {int(ids.min())} to {int(ids.max())}; allowed are "
            f"{-len(virtual_tokens)} to {embedding.num_embeddings - 1}"
        )
    embeds: Tensor = embedding(ids.clamp(min=0))
    virtual = ids < 0
    embeds[virtual] = virtual_tokens.to(embeds)[-1 - ids[virtual]]
    return embeds


def check_width(base: Any, virtual_tokens: Tensor) -> None:
    """Raise WeightsError unless `virtual_tokens` are [V, D] for the base's D."""
    width = base.get_input_embeddings().embedding_dim
    if virtual_tokens.dim() != 2 or len(virtual_tokens) == 0 or virtual_tokens.shape[1] != width:
        raise WeightsError(
            f"the virtual tokens have the shape {tuple(virtual_tokens.shape)}; the base needs "
            f"[V, {width}]"
        )


@dataclass(frozen=True)
class PromptEmbeds:
    """Inputs [seq, D] by name. Raises WeightsError unless all have one width and dtype."""

    inputs: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        _check(self.inputs, "the inputs")


def export_prompt_embeds(path: str | Path, inputs: Mapping[str, Tensor]) -> None:
    """Write inputs [seq, D] by name as one safetensors file. Raises WeightsError."""
    inputs = PromptEmbeds(inputs).inputs
    check_finite(inputs, str(path))
    write_durably(Path(path), [dump_tensors(inputs, {"kind": KIND})])


def load_prompt_embeds(path: str | Path) -> PromptEmbeds:
    """Read what `export_prompt_embeds` wrote. Raises WeightsError, before memory is taken."""
    with open_weights(Path(path)) as weights:
        if weights.metadata != {"kind": KIND}:
            raise WeightsError(f"{path}: its header does not say that it holds prompt_embeds")
        _check(weights.entries, str(path))
        return PromptEmbeds(weights.read())


def _check(found: Mapping[str, TensorEntry] | Mapping[str, Tensor], where: str) -> None:
    kinds = {(tuple(entry.shape[1:]), entry.dtype) for entry in found.values()}
    fits = all(len(entry.shape) == 2 and 0 not in entry.shape for entry in found.values())
    if len(kinds) != 1 or not fits or not all(dtype in PROMPT_DTYPES for _, dtype in kinds):
        raise WeightsError(
            f"{where}: inputs [seq, D] of one width, all float32, float16 or bfloat16, are needed; "
            f"[D] and the dtype are {sorted(map(str, kinds))[:6]}"
        )
