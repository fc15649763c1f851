"""Prompt encoders of one shape as stacked tensors: what they share, and their forward pass.

Shapes: n encoders, V virtual tokens, D token_dim, H encoder_hidden_size, L layers of an LSTM.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from encoders.errors import EncoderError
from encoders.modules.anchored_prompt import AnchoredPrompt
from encoders.modules.deep_prompt_encoder import DeepPromptEncoder
from encoders.modules.prompt_embedding import PromptEmbedding
from encoders.modules.prompt_encoder import PromptEncoder

TensorShapes = tuple[tuple[str, torch.Size], ...]
_ANCHORED = "encoder."  # where an AnchoredPrompt holds its encoder


@dataclass(frozen=True)
class EncoderShape:
    """All that encoders must have in common to be run as one: names and shapes of their parameters
    and buffers, `dropout` between LSTM layers, and the precision and device of their numbers."""

    parameters: TensorShapes
    buffers: TensorShapes
    dropout: float
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, module: nn.Module) -> "EncoderShape":
        """The shape of a prompt module, anchored or not. Raises EncoderError for one that is no
        table, MLP or LSTM in a single precision."""
        inner = module.encoder if isinstance(module, AnchoredPrompt) else module
        if not isinstance(inner, PromptEncoder | PromptEmbedding | DeepPromptEncoder):
            raise EncoderError(
                f"a {type(inner).__name__} cannot be stacked with others of its shape"
            )
        parameters = dict(module.named_parameters())
        dtypes = {parameter.dtype for parameter in parameters.values()}
        if len(dtypes) != 1 or not all(p.requires_grad for p in parameters.values()):
            raise EncoderError(
                "an encoder in a bank has one precision and learns in all its weights"
            )
        first = next(iter(parameters.values()))
        lstm = getattr(inner, "lstm_head", None)
        return cls(
            parameters=tuple((name, tensor.shape) for name, tensor in parameters.items()),
            buffers=tuple((name, tensor.shape) for name, tensor in module.named_buffers()),
            dropout=lstm.dropout if lstm is not None and lstm.num_layers > 1 else 0.0,
            dtype=first.dtype,
            device=first.device,
        )

    @property
    def num_elements(self) -> int:
        """Weights of one encoder."""
        return sum(shape.numel() for _, shape in self.parameters)

    @property
    def lstm_layers(self) -> int:
        return sum(".weight_ih_l" in name and "reverse" not in name for name, _ in self.parameters)

    def dropout_masks(self, generators: Sequence[torch.Generator]) -> Tensor | None:
        """Masks [n, L - 1, V, 2H] for a training step, one from each encoder's generator; None
        where nothing is dropped."""
        if not self.dropout:
            return None
        shapes = {name.removeprefix(_ANCHORED): shape for name, shape in self.parameters}
        num_virtual_tokens = shapes["embedding.weight"][0]
        width = 2 * shapes["lstm_head.weight_hh_l0"][1]
        keep = torch.full((self.lstm_layers - 1, num_virtual_tokens, width), 1.0 - self.dropout)
        masks = [torch.bernoulli(keep, generator=generator) for generator in generators]
        return (torch.stack(masks) / (1.0 - self.dropout)).to(self.device, self.dtype)

    def emit(
        self,
        parameters: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        masks: Tensor | None = None,
    ) -> Tensor:
        """Virtual tokens [n, V, D] of n encoders, from stacked parameters and buffers [n, ...] and,
        in training, dropout masks [n, L - 1, V, 2H]."""
        own = {name.removeprefix(_ANCHORED): tensor for name, tensor in parameters.items()}
        tokens = own["embedding.weight"]
        if self.lstm_layers:
            tokens = _lstm(tokens, own, self.lstm_layers, masks)
        tokens = _mlp(tokens, own)
        if not buffers:
            return tokens
        gain = buffers["gain"].view(-1, 1, 1)
        return buffers["anchor"] + gain * (tokens - buffers["start"])


def _mlp(x: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
    """The linear layers of `mlp_head`, with a ReLU between them: [n, V, in] -> [n, V, out]."""
    layers = sorted(
        int(name.split(".")[1])
        for name in parameters
        if name.startswith("mlp_head.") and name.endswith(".weight")
    )
    for layer in layers:
        weight, bias = (parameters[f"mlp_head.{layer}.{part}"] for part in ("weight", "bias"))
        x = torch.baddbmm(bias.unsqueeze(1), x, weight.transpose(1, 2))
        if layer != layers[-1]:
            x = x.relu()
    return x


def _lstm(
    x: Tensor, parameters: Mapping[str, Tensor], num_layers: int, masks: Tensor | None
) -> Tensor:
    """`lstm_head`, bidirectional: [n, V, D] -> [n, V, 2H]. Source: torch.nn.LSTM."""
    for layer in range(num_layers):
        if layer and masks is not None:
            x = x * masks[:, layer - 1]
        forth = _direction(x, parameters, f"l{layer}")
        back = _direction(x.flip(1), parameters, f"l{layer}_reverse").flip(1)
        x = torch.cat([forth, back], dim=-1)
    return x


def _direction(x: Tensor, parameters: Mapping[str, Tensor], suffix: str) -> Tensor:
    """One direction of one layer over all V positions: [n, V, in] -> [n, V, H]."""
    weight_ih, weight_hh, bias_ih, bias_hh = (
        parameters[f"lstm_head.{part}_{suffix}"]
        for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )
    into = torch.baddbmm((bias_ih + bias_hh).unsqueeze(1), x, weight_ih.transpose(1, 2))
    recurrent = weight_hh.transpose(1, 2)
    hidden, cell = [], None
    for step in into.unbind(1):
        gates = step if cell is None else step + torch.bmm(hidden[-1].unsqueeze(1), recurrent)[:, 0]
        enter, forget, new, out = gates.chunk(4, dim=-1)
        entering = enter.sigmoid() * new.tanh()
        cell = entering if cell is None else forget.sigmoid() * cell + entering
        hidden.append(out.sigmoid() * cell.tanh())
    return torch.stack(hidden, dim=1)
