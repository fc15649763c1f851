"""Which words virtual tokens are near to: the vocabulary's tokens of greatest cosine (Lester et
al. 2021, section 6.3). An aid to reading; what a prompt does is not told by it.

Shapes: V virtual tokens, N tokens of the vocabulary, D the size of the base's embeddings.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from encoders.packed.packed_model import load_frozen
from encoders.text.tokenization import TextTokenizer

NUM_NEAREST = 3


class Vocabulary:
    """The embeddings [N, D] of the tokens that text is made of, and their texts."""

    def __init__(self, embeddings: Tensor, tokenizer: TextTokenizer) -> None:
        ids = [i for i in tokenizer.text_ids if i < len(embeddings)]
        self._ids, self._tokenizer = ids, tokenizer
        self._directions = F.normalize(embeddings[ids].float(), dim=1)

    @classmethod
    def load(cls, folder: Path) -> "Vocabulary":
        """Of a base model folder."""
        model = load_frozen(folder, "eager", torch.float32)
        return cls(model.get_input_embeddings().weight.detach(), TextTokenizer.load(folder))

    def nearest(self, virtual_tokens: Tensor) -> list[tuple[str, ...]]:
        """The texts of each virtual token's nearest tokens [V, D], the nearest first."""
        closeness = F.normalize(virtual_tokens.float(), dim=1) @ self._directions.T
        found = closeness.topk(min(NUM_NEAREST, len(self._ids)), dim=1).indices.tolist()
        return [tuple(self._tokenizer.decode([self._ids[i]]) for i in row) for row in found]
