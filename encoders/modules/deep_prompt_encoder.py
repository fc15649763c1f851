"""An MLP prompt encoder of chosen depth, as NeMo's `mlp`.

Shapes: B rows, V virtual tokens, D token_dim, H hidden_size. Its config is not one of PEFT's: what
becomes an adapter is the encoder's result, a bare table. Source: NeMo 1.x,
`nlp/modules/common/prompt_encoder.py`.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from encoders.errors import ConfigError
from encoders.field_checks import check_fields, check_std, checked_table_shape
from encoders.modules.prompt_encoder import relu_mlp


@dataclass
class DeepPromptEncoderConfig:
    """`hidden_size` None is half of `token_dim`; `num_layers` counts linear layers, from 2 up;
    `init_std` is the standard deviation of the table at the start. Raises ConfigError."""

    num_virtual_tokens: int
    token_dim: int
    hidden_size: int | None = None
    num_layers: int = 2
    init_std: float = 0.023

    def __post_init__(self) -> None:
        check_fields(self)
        check_std("init_std", self.init_std)
        checked_table_shape(self.num_virtual_tokens, self.token_dim)
        if self.num_layers < self._fewest_layers:
            raise ConfigError(
                f"num_layers is {self.num_layers}; at least {self._fewest_layers} are needed"
            )

    @property
    def _fewest_layers(self) -> int:
        return 2

    @property
    def width(self) -> int:
        """H: `hidden_size` or its default."""
        return self.hidden_size or max(1, self.token_dim // 2)

    @property
    def mlp_sizes(self) -> list[int]:
        """Sizes along the MLP: D, then H between any two linear layers, then D."""
        return [self.token_dim, *[self.width] * (self.num_layers - 1), self.token_dim]


class DeepPromptEncoder(nn.Module):
    """Emits the virtual tokens of one prompt: a table, then linear layers with ReLU between."""

    def __init__(self, config: DeepPromptEncoderConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.num_virtual_tokens, config.token_dim)
        nn.init.normal_(self.embedding.weight, std=config.init_std)
        self.mlp_head = relu_mlp(*config.mlp_sizes)

    def forward(self, indices: Tensor) -> Tensor:
        """Virtual tokens [B, V, D] of table rows `indices` [B, V]."""
        embeds: Tensor = self.mlp_head(self.embedding(indices))
        return embeds

    def virtual_tokens(self) -> Tensor:
        """All virtual tokens [V, D], with gradient."""
        tokens: Tensor = self.mlp_head(self.embedding.weight)
        return tokens
