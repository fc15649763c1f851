"""Prefix tuning's encoder: keys and values of every layer, learned or computed by a two-layer MLP.

Shapes: B rows, V virtual tokens, L layers, D token_dim (the size of one layer's keys), H
encoder_hidden_size. State-dict keys, shapes and random draws are PEFT's
(`tuners/prefix_tuning/model.py`). Source: 'Prefix-Tuning', arXiv 2101.00190.
"""

import torch
from torch import Tensor, nn

from encoders.config import PrefixTuningConfig
from encoders.errors import WeightsError


class PrefixEncoder(nn.Module):
    """Emits the prefix of one prompt: for each virtual token L keys and L values of size D.

    A table [V, L*2*D]; with `prefix_projection` a table [V, D], Linear(D,H), Tanh,
    Linear(H,L*2*D). With `inference_mode` it is the whole table in either case, where PEFT's
    forward crashes under a projection. Raises ConfigError where the config lacks a size.
    """

    def __init__(self, config: PrefixTuningConfig) -> None:
        super().__init__()
        self.prefix_projection = config.prefix_projection
        self.transform: nn.Sequential | None = None
        num_virtual_tokens, prefix_size = config.table_shape
        if self.prefix_projection and not config.inference_mode:
            token_dim = config.required_token_dim
            hidden_size = config.encoder_hidden_size or token_dim
            self.embedding = nn.Embedding(num_virtual_tokens, token_dim)
            self.transform = nn.Sequential(
                nn.Linear(token_dim, hidden_size),
                nn.Tanh(),
                nn.Linear(hidden_size, prefix_size),
            )
        else:
            self.embedding = nn.Embedding(num_virtual_tokens, prefix_size)
        if config.init_weights == "zero":
            self._zero()

    def _zero(self) -> None:
        """Start from zero keys and values."""
        last = self.embedding if self.transform is None else self.transform[-1]
        for parameter in last.parameters():
            nn.init.zeros_(parameter)

    def forward(self, prefix: Tensor) -> Tensor:
        """Prefixes [B, V, L*2*D] of table rows `prefix` [B, V]."""
        embeds: Tensor = self.embedding(prefix)
        return embeds if self.transform is None else self.transform(embeds)

    def prefix(self) -> Tensor:
        """The whole prefix [V, L*2*D], with gradient."""
        weight = self.embedding.weight
        prefixes: Tensor = self(torch.arange(len(weight), device=weight.device).unsqueeze(0))
        return prefixes[0]

    def load_prompt_embeddings(self, prompt_embeddings: Tensor) -> None:
        """Take over a saved prefix [V, L*2*D], as PEFT saves it.

        Raises WeightsError under a projection, which cannot be inverted, and for another shape.
        """
        if self.transform is not None:
            raise WeightsError(
                "Cannot load flattened prompt embeddings when `prefix_projection=True`."
            )
        if prompt_embeddings.shape != self.embedding.weight.shape:
            raise WeightsError(
                "Invalid `prompt_embeddings` shape. Expected "
                f"{tuple(self.embedding.weight.shape)}, got {tuple(prompt_embeddings.shape)}."
            )
        with torch.no_grad():
            self.embedding.weight.copy_(prompt_embeddings)
