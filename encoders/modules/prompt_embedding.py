"""Prompt tuning's bare table of virtual tokens, started from a text, the vocabulary or at random.

Shapes: B rows, V virtual tokens, D token_dim. State-dict keys, shapes and random draws are PEFT's
(`tuners/prompt_tuning/model.py`). The base's word embeddings are only ever called, so they may be
sharded. A tokenizer is read from a local folder and never runs code of its own.
Source: 'The Power of Scale for Parameter-Efficient Prompt Tuning', arXiv 2104.08691.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from encoders.config import PromptTuningConfig, PromptTuningInit
from encoders.errors import ConfigError
from encoders.field_checks import check_std


class PromptEmbedding(nn.Module):
    """A learned table [V, D] that is used as it is.

    `word_embeddings` (the base's `get_input_embeddings()`) is needed to start from text or from
    vocabulary. `init_std` replaces a RANDOM start's standard deviation of 1 (NeMo: 0.023). With
    `inference_mode` nothing is looked up. Raises ConfigError where a start cannot be made.
    """

    def __init__(
        self,
        config: PromptTuningConfig,
        word_embeddings: nn.Module | None = None,
        *,
        init_std: float | None = None,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(*config.table_shape)
        start = config.prompt_tuning_init
        looks_up = start in (PromptTuningInit.TEXT, PromptTuningInit.SAMPLE_VOCAB)
        if init_std is not None and start != PromptTuningInit.RANDOM:
            raise ConfigError(f"init_std is for a RANDOM start, but prompt_tuning_init is {start}")
        if looks_up and not config.inference_mode:
            self.embedding.weight = nn.Parameter(_start_table(config, word_embeddings))
        elif init_std is not None:
            check_std("init_std", init_std)
            nn.init.normal_(self.embedding.weight, std=init_std)

    def forward(self, indices: Tensor) -> Tensor:
        """Virtual tokens [B, V, D] of table rows `indices` [B, V]."""
        embeds: Tensor = self.embedding(indices)
        return embeds

    def virtual_tokens(self) -> Tensor:
        """All virtual tokens [V, D], with gradient."""
        return self.embedding.weight


def _start_table(config: PromptTuningConfig, word_embeddings: nn.Module | None) -> Tensor:
    """float32 [V, D]: the word embeddings of the config's text, or of random tokens."""
    num_tokens, token_dim = config.table_shape
    vocab_size: int | None = getattr(word_embeddings, "num_embeddings", None)
    if word_embeddings is None or vocab_size is None:
        raise ConfigError(
            f"prompt_tuning_init={config.prompt_tuning_init} needs word_embeddings: "
            "give the base's get_input_embeddings()"
        )
    if config.prompt_tuning_init == PromptTuningInit.TEXT:
        token_ids = torch.tensor(_text_token_ids(config, num_tokens))
    else:
        token_ids = torch.randint(0, vocab_size, (num_tokens,))
    if token_ids.max() >= vocab_size:
        raise ConfigError(
            f"the tokenizer {config.tokenizer_name_or_path!r} gives the token id "
            f"{token_ids.max()}, but the base embeds {vocab_size} tokens: give the base's own"
        )
    device = next((parameter.device for parameter in word_embeddings.parameters()), None)
    with torch.no_grad():
        table: Tensor = word_embeddings(token_ids.to(device)).to(torch.float32, copy=True)
    if table.shape[-1] != token_dim:
        raise ConfigError(
            f"token_dim is {token_dim}, but the base's embeddings have {table.shape[-1]}: "
            f"give token_dim={table.shape[-1]}"
        )
    return table


def _text_token_ids(config: PromptTuningConfig, num_tokens: int) -> list[int]:
    """The text's token ids, cut or repeated to `num_tokens`."""
    from transformers import AutoTokenizer

    arguments: dict[str, Any] = {
        **(config.tokenizer_kwargs or {}),
        "trust_remote_code": False,
        "local_files_only": True,
    }
    name = config.tokenizer_name_or_path or ""
    if not Path(name).is_dir():  # for a hub's name, local_files_only does not keep to itself
        raise ConfigError(f"tokenizer_name_or_path {name!r} is no folder on this machine")
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **arguments)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"the folder {name!r} holds no usable tokenizer: {error}") from error
    token_ids: list[int] = list(tokenizer(config.prompt_tuning_init_text)["input_ids"])
    if not token_ids:
        raise ConfigError(
            f"prompt_tuning_init_text {config.prompt_tuning_init_text!r} has no tokens"
        )
    return (token_ids * -(-num_tokens // len(token_ids)))[:num_tokens]
