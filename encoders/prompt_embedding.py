"""Prompt tuning's bare table of virtual tokens, with the keys and shapes of PEFT's.

Source: 'The Power of Scale for Parameter-Efficient Prompt Tuning', arXiv 2104.08691.
"""

from torch import Tensor, nn


class PromptEmbedding(nn.Module):
    """A learned table [V, D] that is used as it is."""

    def __init__(self, total_virtual_tokens: int, token_dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(total_virtual_tokens, token_dim)

    def forward(self, indices: Tensor) -> Tensor:
        """Virtual tokens [B, V, D] of table rows `indices` [B, V]."""
        embeds: Tensor = self.embedding(indices)
        return embeds

    def virtual_tokens(self) -> Tensor:
        """All virtual tokens [V, D], with gradient."""
        return self.embedding.weight
