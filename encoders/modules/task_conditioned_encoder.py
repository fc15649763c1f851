"""One prompt encoder shared by many tasks, conditioned on the embedding of each task's name.

The first rows of the shared table are replaced by the tokens of the task's name, then one MLP or
LSTM runs, as in NeMo 1.x (`nlp/modules/common/prompt_encoder.py`). A frozen task is a snapshot that
training the others never changes. Task names are data: any printable text, never a path or an
attribute. Shapes: B rows, T name tokens, V virtual tokens, D token_dim, H hidden_size.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from encoders.config import PromptEncoderReparameterizationType
from encoders.errors import ConfigError, EncoderError
from encoders.field_checks import member_of
from encoders.modules.deep_prompt_encoder import DeepPromptEncoderConfig
from encoders.modules.eval_mode import eval_mode
from encoders.modules.named_tables import NamedTables
from encoders.modules.prompt_encoder import bidirectional_lstm, relu_mlp

_Type = PromptEncoderReparameterizationType


@dataclass
class TaskConditionedEncoderConfig(DeepPromptEncoderConfig):
    """As DeepPromptEncoderConfig; with an LSTM, `num_layers` and `dropout` are the LSTM's."""

    encoder_type: PromptEncoderReparameterizationType | str = _Type.MLP
    dropout: float = 0.0

    def __post_init__(self) -> None:
        kind = member_of(_Type, self.encoder_type)
        if kind is None:
            raise ConfigError(f"encoder_type is {self.encoder_type!r}; allowed are MLP and LSTM")
        self.encoder_type = kind
        super().__post_init__()
        if not 0 <= self.dropout <= 1:  # NaN too
            raise ConfigError(f"dropout is {self.dropout}; allowed is 0 to 1")

    @property
    def _fewest_layers(self) -> int:
        return 1 if self.encoder_type == _Type.LSTM else super()._fewest_layers


class TaskConditionedEncoder(nn.Module):
    """Emits the virtual tokens of any of its tasks.

    `tasks` holds the embeddings [T, D] of each task's name, `frozen` the virtual tokens [V, D] of
    each frozen task. Both are buffers: they are in the state dict and come back with it.
    """

    def __init__(self, config: TaskConditionedEncoderConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(config.num_virtual_tokens, config.token_dim)
        nn.init.normal_(self.embedding.weight, std=config.init_std)
        self.lstm_head: nn.LSTM | None = None
        if config.encoder_type == _Type.LSTM:
            width = config.width
            self.lstm_head = bidirectional_lstm(
                config.token_dim, width, config.num_layers, config.dropout
            )
            self.mlp_head = relu_mlp(width * 2, width * 2, config.token_dim)
        else:
            self.mlp_head = relu_mlp(*config.mlp_sizes)
        self.tasks = NamedTables(config.token_dim)
        self.frozen = NamedTables(config.token_dim)

    def add_task(self, name: str, embeddings: Tensor) -> None:
        """Add a task by the embeddings [T, D] of its name's tokens, which are copied.

        Raises EncoderError for a name that is empty or taken, and for embeddings of another width.
        """
        if name in self.tasks:
            raise EncoderError(f"there is a task {name!r} already")
        self.tasks.add(name, embeddings)

    def freeze_task(self, name: str) -> None:
        """Keep the task's virtual tokens as they are now, without dropout, from here on.

        A frozen task gets no gradient. Raises EncoderError for an unknown name.
        """
        with eval_mode(self):
            self.frozen.add(name, self.virtual_tokens(name))

    def forward(self, task_embeddings: Tensor) -> Tensor:
        """Virtual tokens [B, V, D] for task names' embeddings [B, T, D], of which V are used."""
        table = self.embedding.weight
        named = task_embeddings[:, : len(table)].to(table)
        rest = table[named.shape[1] :].expand(len(named), -1, -1)
        embeds = torch.cat([named, rest], dim=1)
        if self.lstm_head is not None:
            embeds = self.lstm_head(embeds)[0]
        tokens: Tensor = self.mlp_head(embeds)
        return tokens

    def virtual_tokens(self, task: str) -> Tensor:
        """The task's virtual tokens [V, D], with gradient unless it is frozen.

        Raises EncoderError for an unknown name.
        """
        if task in self.frozen:
            return self.frozen[task].to(self.embedding.weight.device, copy=True)
        if task not in self.tasks:
            raise EncoderError(f"there is no task {task!r}; there are {sorted(self.tasks)}")
        tokens: Tensor = self(self.tasks[task].unsqueeze(0))
        return tokens[0]
