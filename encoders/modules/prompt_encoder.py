"""P-tuning's prompt encoder: a learned table, reparameterised by an MLP or a bidirectional LSTM.

Shapes: B rows, V virtual tokens, D token_dim, H encoder_hidden_size. State-dict keys, shapes and
the order in which random numbers are drawn are PEFT's (`tuners/p_tuning/model.py`): the same seed
gives the same weights. Source: 'GPT Understands, Too', arXiv 2103.10385.
"""

import warnings
from itertools import pairwise

import torch
from torch import Tensor, nn

from encoders.config import PromptEncoderConfig, PromptEncoderReparameterizationType
from encoders.errors import ConfigError


class PromptEncoder(nn.Module):
    """Emits the virtual tokens of one prompt.

    MLP: Linear(D,H), ReLU, Linear(H,H), ReLU, Linear(H,D). LSTM: bidirectional LSTM(D,H), then
    Linear(2H,2H), ReLU, Linear(2H,D). With `inference_mode` it is its table alone. Raises
    ConfigError where the config lacks a size.
    """

    def __init__(self, config: PromptEncoderConfig) -> None:
        super().__init__()
        self.total_virtual_tokens, self.token_dim = config.table_shape
        self.input_size = self.token_dim
        self.output_size = self.token_dim
        self.hidden_size: int = config.encoder_hidden_size or self.token_dim
        self.encoder_type = config.encoder_reparameterization_type
        self.embedding = nn.Embedding(self.total_virtual_tokens, self.token_dim)
        self.lstm_head: nn.LSTM | None = None
        self.mlp_head: nn.Sequential | None = None
        if not config.inference_mode:
            self._add_heads(config)

    def _add_heads(self, config: PromptEncoderConfig) -> None:
        if self.encoder_type == PromptEncoderReparameterizationType.LSTM:
            self.lstm_head = bidirectional_lstm(
                self.input_size,
                self.hidden_size,
                config.encoder_num_layers,
                config.encoder_dropout,
            )
            self.mlp_head = relu_mlp(self.hidden_size * 2, self.hidden_size * 2, self.output_size)
        elif self.encoder_type == PromptEncoderReparameterizationType.MLP:
            if config.encoder_num_layers != PromptEncoderConfig.encoder_num_layers:
                warnings.warn(
                    f"for {self.encoder_type!s}, the argument `encoder_num_layers` is "
                    f"ignored. Exactly {PromptEncoderConfig.encoder_num_layers} MLP layers "
                    "are used.",
                    stacklevel=3,
                )
            self.mlp_head = relu_mlp(
                self.input_size, self.hidden_size, self.hidden_size, self.output_size
            )
        else:  # set on the config after it was made, which checks it
            raise ConfigError(
                "Prompt encoder type not recognized. Please use one of MLP (recommended) or LSTM."
            )

    def forward(self, indices: Tensor) -> Tensor:
        """Virtual tokens [B, V, D] of table rows `indices` [B, V]."""
        embeds: Tensor = self.embedding(indices)
        if self.lstm_head is not None:
            embeds = self.lstm_head(embeds)[0]
        if self.mlp_head is not None:
            embeds = self.mlp_head(embeds)
        return embeds

    def virtual_tokens(self) -> Tensor:
        """All virtual tokens [V, D], with gradient."""
        device = self.embedding.weight.device
        tokens: Tensor = self(torch.arange(self.total_virtual_tokens, device=device).unsqueeze(0))
        return tokens[0]


def relu_mlp(*sizes: int) -> nn.Sequential:
    """Linear layers from each size to the next, with a ReLU between them."""
    layers: list[nn.Module] = []
    for size, next_size in pairwise(sizes):
        layers += [nn.Linear(size, next_size), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def bidirectional_lstm(
    token_dim: int, hidden_size: int, num_layers: int, dropout: float
) -> nn.LSTM:
    """[B, V, D] -> [B, V, 2H]; `dropout` lies between its layers."""
    return nn.LSTM(
        input_size=token_dim,
        hidden_size=hidden_size,
        num_layers=num_layers,
        dropout=dropout,
        bidirectional=True,
        batch_first=True,
    )
