"""A prompt that starts at given virtual tokens and learns on from there.

`anchor + gain * (encoder - encoder at the start)`: the first tokens are the anchor (exactly, but
for an LSTM's rounding), every layer of the encoder gets a gradient from the first step on, and the
gain brings the encoder's output to the base's embedding scale. The anchor never learns.
benchmarks/README.md says which other forms were tried.
Shapes: B rows, V virtual tokens, D token_dim.
"""

import math

import torch
from torch import Tensor, nn

from encoders.errors import EncoderError
from encoders.modules.eval_mode import eval_mode
from encoders.modules.prompt_init import check_table


class AnchoredPrompt(nn.Module):
    """Emits an anchor [V, D] that `encoder` moves: any module of one prompt (of a prefix, D is
    L*2*D).

    `scale` is the base's embedding scale (`embedding_scale`): the prompt moves by it where the
    encoder's output changes by its own starting size. The start is taken without dropout, which in
    training moves the first tokens already. The state dict holds anchor, start and gain.

    Raises EncoderError for an anchor that is no finite table or does not fit the encoder, for a
    scale that is not positive, and for an encoder whose output is all zero, which has no size.
    """

    anchor: Tensor
    start: Tensor
    gain: Tensor

    def __init__(self, anchor: Tensor, encoder: nn.Module, scale: float) -> None:
        super().__init__()
        check_table("the anchor", anchor)
        if not 0 < scale < math.inf:  # NaN too
            raise EncoderError(f"scale is {scale}; it must be a finite number above 0")
        with eval_mode(encoder):
            start = encoder(_row_indices(encoder))[0]
        if start.shape != anchor.shape:
            raise EncoderError(
                f"the anchor is {tuple(anchor.shape)}, but the encoder emits {tuple(start.shape)}"
            )
        size = float(start.square().mean().sqrt())
        if not 0 < size < math.inf:
            raise EncoderError(f"the encoder's output is of size {size}: give it random weights")
        self.encoder = encoder
        self.register_buffer("anchor", anchor.detach().to(start, copy=True))
        self.register_buffer("start", start.clone())
        self.register_buffer("gain", start.new_tensor(scale / size))

    def forward(self, indices: Tensor) -> Tensor:
        """Virtual tokens [B, V, D] of rows `indices` [B, V]."""
        moved: Tensor = self.encoder(indices) - self.start[indices]
        return self.anchor[indices] + self.gain * moved

    def virtual_tokens(self) -> Tensor:
        """All virtual tokens [V, D], with gradient to the encoder."""
        tokens: Tensor = self(_row_indices(self.encoder))
        return tokens[0]


def _row_indices(encoder: nn.Module) -> Tensor:
    """[1, V]: all rows of an encoder's table."""
    table = getattr(encoder, "embedding", None)
    if not isinstance(table, nn.Embedding):
        raise EncoderError(f"a {type(encoder).__name__} is no encoder with a table `embedding`")
    return torch.arange(table.num_embeddings, device=table.weight.device).unsqueeze(0)
