"""Text to token ids and back, exactly: no special tokens but a base's own opening token.

The only file that asks a transformers tokenizer anything; what it cannot do exactly is refused.
"""

import re
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from encoders.errors import TemplateError

#: BERT's "[unused7]", Gemma's "<unused7>", Llama's "<|reserved_special_token_7|>".
_UNUSED = re.compile(r"[<\[]\|?(unused|reserved)\w*\|?[>\]]")
MAX_CACHED_CHARS = 256  # longer texts rarely come again, and would fill the memory

Ids = tuple[int, ...]


class TextTokenizer:
    """A transformers tokenizer reduced to what templates need.

    `bos_token_id` is the token the tokenizer opens every text with, if it does; `eos_token_id`
    ends a generated answer, `mask_token_id` stands for a masked one, and `unk_token_id` for words
    it does not know (None: the base has no such token).
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        opening = list(tokenizer("", add_special_tokens=True)["input_ids"])
        bos = tokenizer.bos_token_id
        self.bos_token_id: int | None = bos if opening[:1] == [bos] and bos is not None else None
        self.eos_token_id: int | None = tokenizer.eos_token_id
        self.mask_token_id: int | None = tokenizer.mask_token_id
        self.unk_token_id: int | None = tokenizer.unk_token_id
        self._encode_cached = lru_cache(maxsize=65536)(self._encode)

    @classmethod
    def load(cls, folder: Path) -> "TextTokenizer":
        """Load the tokenizer of a base model folder; never reaches for a hub."""
        from transformers import AutoTokenizer

        return cls(AutoTokenizer.from_pretrained(folder, local_files_only=True))

    def encode(self, text: str, *, literally: bool = False) -> Ids:
        """Token ids of `text`. What reads like a special token becomes one, unless `literally`."""
        encode = self._encode_cached if len(text) <= MAX_CACHED_CHARS else self._encode
        return encode(text, literally)

    def decode(self, token_ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(list(token_ids), skip_special_tokens=True)
        return text

    @cached_property
    def text_ids(self) -> Ids:
        """Ids of the tokens that text is made of: neither special nor added nor kept unused."""
        others = {*self._tokenizer.added_tokens_decoder, *self._tokenizer.all_special_ids}
        vocabulary = self._tokenizer.get_vocab().items()
        return tuple(
            sorted(i for token, i in vocabulary if i not in others and not _UNUSED.fullmatch(token))
        )

    @cached_property
    def surroundings(self) -> tuple[Ids, Ids]:
        """The special tokens the tokenizer puts before and after a text: BERT's [CLS] and [SEP]."""
        text = self._encode("a", False)
        whole: Ids = tuple(self._tokenizer("a", add_special_tokens=True)["input_ids"])
        at = next(i for i in range(len(whole)) if whole[i : i + len(text)] == text)
        return whole[:at], whole[at + len(text) :]

    def token_ends(self, text: str, *, literally: bool = False) -> Ids:
        """Where `text` can be cut: the numbers of characters after which one token ends.

        A character that several tokens share stays whole. A tokenizer that does not tell where
        its tokens stand (one in Python, as ByT5's) may be cut after any character.
        """
        if not self._tokenizer.is_fast:
            return tuple(range(1, len(text) + 1))
        offsets = self._call(text, literally, return_offsets_mapping=True)["offset_mapping"]
        spans = [*offsets, (len(text), len(text))]
        return tuple(end for (_, end), (start, _) in pairwise(spans) if end <= start)

    def render_chat(self, message: str) -> str:
        """The text of the tokenizer's chat template around one user's message, up to the answer."""
        from jinja2 import TemplateError as JinjaError

        if not self._tokenizer.chat_template:
            raise TemplateError(
                "the base's tokenizer has no chat template; leave out `chat`, or take a base that "
                "was tuned for chat"
            )
        messages = [{"role": "user", "content": message}]
        try:
            text: str = self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
        except (JinjaError, ValueError, TypeError) as error:
            raise TemplateError(
                f"the tokenizer's chat template fails on a single user's message: {error}"
            ) from error
        return text

    def control_tokens(self, markup: str) -> Mapping[str, int]:
        """The tokens that only markup may make: the special ones, and those added that it holds.

        Added white space (Gemma's "\\n\\n") is text.
        """
        special = set(self._tokenizer.all_special_ids)
        return {
            token.content: token_id
            for token_id, token in self._tokenizer.added_tokens_decoder.items()
            if token.special
            or token_id in special
            or (token.content in markup and not token.content.isspace())
        }

    def split_controls(self, markup: str) -> tuple[str | int, ...]:
        """`markup` cut into text and the ids of its control tokens, as the tokenizer cuts it.

        White space goes with a token that takes it (`lstrip`, `rstrip`: Phi-3's chat tokens).
        """
        controls = self.control_tokens(markup)
        if not controls:
            return (markup,)
        longest_first = sorted(controls, key=len, reverse=True)
        parts = re.split(f"({'|'.join(map(re.escape, longest_first))})", markup)
        for at in range(1, len(parts), 2):  # text and control tokens take turns
            token = self._tokenizer.added_tokens_decoder[controls[parts[at]]]
            if token.lstrip:
                parts[at - 1] = parts[at - 1].rstrip()
            if token.rstrip:
                parts[at + 1] = parts[at + 1].lstrip()
        return tuple(controls[part] if at % 2 else part for at, part in enumerate(parts) if part)

    def _encode(self, text: str, literally: bool) -> Ids:
        return tuple(self._call(text, literally)["input_ids"])

    def _call(self, text: str, literally: bool, **asked: bool) -> Any:
        if literally:  # else the tokenizer's own setting holds
            asked["split_special_tokens"] = True
        return self._tokenizer(text, add_special_tokens=False, **asked)
