"""Encoded rows as padded tensors, for a plain training loop around a transformers model.

Shapes: B rows, T positions of the longest, V virtual tokens, D width of the base's embeddings.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from encoders.text.row_encoder import IGNORED, EncodedRow


def collate(rows: Sequence[EncodedRow], pad_token_id: int) -> dict[str, Tensor]:
    """`input_ids` (virtual tokens negative), `attention_mask` and `labels`, each [B, T].

    Padding is on the right: masked, and without a label. Which token pads makes no difference.
    """

    def padded(values: list[tuple[int, ...]], fill: int) -> Tensor:
        return pad_sequence(list(map(torch.tensor, values)), batch_first=True, padding_value=fill)

    return {
        "input_ids": padded([row.input_ids for row in rows], pad_token_id),
        "attention_mask": padded([(1,) * len(row.input_ids) for row in rows], 0),
        "labels": padded([row.labels for row in rows], IGNORED),
    }


def embed_rows(input_ids: Tensor, embedding: nn.Module, virtual_tokens: Tensor) -> Tensor:
    """Input embeddings [B, T, D]: `embedding` of the ids, and `virtual_tokens` [V, D] in place.

    `embedding` is the base's `get_input_embeddings()`. Gradients reach `virtual_tokens`.
    """
    embeds: Tensor = embedding(input_ids.clamp(min=0))
    virtual = virtual_tokens.to(embeds.dtype)[(-input_ids - 1).clamp(min=0)]
    return torch.where(input_ids[..., None] < 0, virtual, embeds)
