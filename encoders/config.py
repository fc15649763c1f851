"""Configs of the prompt encoders, with PEFT's field names, defaults and values."""

from dataclasses import dataclass
from enum import StrEnum


class PromptEncoderReparameterizationType(StrEnum):
    """How P-tuning computes its virtual tokens: an MLP or a bidirectional LSTM with an MLP."""

    MLP = "MLP"
    LSTM = "LSTM"


@dataclass
class PromptEncoderConfig:
    """A P-tuning encoder. Names and defaults: PEFT's `tuners/p_tuning/config.py`.

    `token_dim` is the base's embedding size, `encoder_hidden_size` the width of the encoder
    (default: `token_dim`). `encoder_num_layers` and `encoder_dropout` are the LSTM's.
    """

    num_virtual_tokens: int
    token_dim: int
    num_transformer_submodules: int = 1
    encoder_reparameterization_type: PromptEncoderReparameterizationType | str = (
        PromptEncoderReparameterizationType.MLP
    )
    encoder_hidden_size: int | None = None
    encoder_num_layers: int = 2
    encoder_dropout: float = 0.0
    inference_mode: bool = False

    def __post_init__(self) -> None:
        kind = self.encoder_reparameterization_type
        if (
            isinstance(kind, str)
            and kind.upper() in PromptEncoderReparameterizationType.__members__
        ):
            self.encoder_reparameterization_type = PromptEncoderReparameterizationType(kind.upper())
        if self.encoder_hidden_size is None:
            self.encoder_hidden_size = self.token_dim

    @property
    def total_virtual_tokens(self) -> int:
        return self.num_virtual_tokens * self.num_transformer_submodules
