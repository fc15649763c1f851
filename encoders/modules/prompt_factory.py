"""The module that each config describes."""

from torch import nn

from encoders.config import (
    MultitaskPromptTuningConfig,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
)
from encoders.errors import ConfigError
from encoders.modules.deep_prompt_encoder import DeepPromptEncoder, DeepPromptEncoderConfig
from encoders.modules.multitask_prompt_embedding import MultitaskPromptEmbedding
from encoders.modules.prefix_encoder import PrefixEncoder
from encoders.modules.prompt_embedding import PromptEmbedding
from encoders.modules.prompt_encoder import PromptEncoder
from encoders.modules.task_conditioned_encoder import (
    TaskConditionedEncoder,
    TaskConditionedEncoderConfig,
)


def get_prompt_encoder(config: object, word_embeddings: nn.Module | None = None) -> nn.Module:
    """A new prompt module for any config of this library.

    `word_embeddings`, the base's `get_input_embeddings()`, is needed where the config starts from
    text or vocabulary. Raises ConfigError for any other object, and what the module raises.
    """
    match config:  # a subclass stands before its parent
        case PromptEncoderConfig():
            return PromptEncoder(config)
        case PrefixTuningConfig():
            return PrefixEncoder(config)
        case MultitaskPromptTuningConfig():
            return MultitaskPromptEmbedding(config, word_embeddings)
        case PromptTuningConfig():
            return PromptEmbedding(config, word_embeddings)
        case TaskConditionedEncoderConfig():
            return TaskConditionedEncoder(config)
        case DeepPromptEncoderConfig():
            return DeepPromptEncoder(config)
    raise ConfigError(f"there is no prompt module for a {type(config).__name__}")
