"""A registered prompt in memory, for programs that bring the base and the loop themselves.

Shapes: V virtual tokens, D the size of the base's embeddings.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import torch
from torch import Tensor, nn

from encoders.config import PromptTuningConfig
from encoders.modules.prompt_embedding import PromptEmbedding
from encoders.text.row_encoder import RowEncoder
from encoders.text.template import Prompt, Template
from encoders.text.tokenization import TextTokenizer
from orchestrator.domain.errors import InvalidInput
from orchestrator.domain.prompt_version import PromptVersion
from orchestrator.inference.served_prompt import read_virtual_tokens, row_encoder


@dataclass(frozen=True)
class LoadedPrompt:
    """A version and its virtual tokens, float32 [V, D]; every byte was checked against its digest.

    `checked_at` is when the registry last named this version for what was asked: long ago, where it
    cannot be reached now.
    """

    version: PromptVersion
    virtual_tokens: Tensor
    checked_at: datetime

    @classmethod
    def read(cls, version: PromptVersion, weights: bytes, checked_at: datetime) -> "LoadedPrompt":
        """From the bytes of the version's `prompt_embeddings`. Raises IntegrityError."""
        return cls(version, read_virtual_tokens(version, weights), checked_at)

    @property
    def ref(self) -> str:
        """`TASK@NUMBER`."""
        return self.version.ref

    @property
    def config(self) -> Mapping[str, Any]:
        """Template, answer, candidates and all else that inference needs."""
        return self.version.config

    @property
    def template(self) -> Template:
        return Template.parse(self.config["template"], self.config["answer"])

    def rows(self, tokenizer: TextTokenizer, max_length: int | None = None) -> RowEncoder:
        """The rule by which rows were encoded in training: fields to token ids, with virtual tokens
        negative, for `encoders.embed_rows`. `max_length`: the base's, where rows may be longer."""
        return row_encoder(self.config, tokenizer, max_length)

    def module(self) -> nn.Module:
        """The prompt for `PromptedModel.add_prompt(name, module)`, frozen.

        Raises InvalidInput for a template with text before its virtual tokens, for PromptedModel
        puts them first: it would give other answers than those the prompt was trained for.
        """
        if not self._stands_first:
            raise InvalidInput(
                f"{self.ref} was trained as {self.config['template']!r}, with text before or "
                "between its virtual tokens, but a PromptedModel puts them first",
                "Put them in their places with encoders.embed_rows(ids, embeddings, "
                "prompt.virtual_tokens), the ids from prompt.rows(tokenizer).",
            )
        num_virtual_tokens, token_dim = self.virtual_tokens.shape
        config = PromptTuningConfig(
            task_type="CAUSAL_LM",
            num_virtual_tokens=num_virtual_tokens,
            token_dim=token_dim,
            num_transformer_submodules=1,
            inference_mode=True,
        )
        with torch.device("meta"):
            prompt = PromptEmbedding(config)
        prompt.embedding.weight = nn.Parameter(self.virtual_tokens.clone(), requires_grad=False)
        return prompt

    @property
    def _stands_first(self) -> bool:
        is_prompt = [isinstance(piece, Prompt) for piece in self.template.pieces]
        return "chat" not in self.config and is_prompt == sorted(is_prompt, reverse=True)
