"""Text to token ids and back, exactly: no special tokens but a base's own opening token."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any


class TextTokenizer:
    """A transformers tokenizer reduced to what templates need.

    `bos_token_id` is the token the tokenizer opens every text with, if it does; `eos_token_id`
    ends a generated answer (None: the base has no such token).
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        opening = list(tokenizer("", add_special_tokens=True)["input_ids"])
        bos = tokenizer.bos_token_id
        self.bos_token_id: int | None = bos if opening[:1] == [bos] and bos is not None else None
        self.eos_token_id: int | None = tokenizer.eos_token_id
        self.encode = lru_cache(maxsize=65536)(self._encode)

    @classmethod
    def load(cls, folder: Path) -> "TextTokenizer":
        """Load the tokenizer of a base model folder; never reaches for a hub."""
        from transformers import AutoTokenizer

        return cls(AutoTokenizer.from_pretrained(folder, local_files_only=True))

    def decode(self, token_ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(list(token_ids), skip_special_tokens=True)
        return text

    def _encode(self, text: str) -> tuple[int, ...]:
        encoded = self._tokenizer(text, add_special_tokens=False)
        return tuple(encoded["input_ids"])
