"""A prompt version made ready to answer: its template, candidates and virtual tokens."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor

from encoders.errors import TemplateError, WeightsError
from encoders.files.weights_file import load_tensors
from encoders.text.chat_markup import ChatMarkup
from encoders.text.row_encoder import RowEncoder
from encoders.text.template import Template
from encoders.text.tokenization import TextTokenizer
from orchestrator.artifacts.artifact_store import ArtifactStore
from orchestrator.domain.errors import IntegrityError, InvalidData
from orchestrator.domain.prompt_version import PromptVersion

_UNLIKE = ("a", "7", "Z. q", "\n", "ü", "'s")  # field values that begin in unlike ways


@dataclass(frozen=True)
class ServedPrompt:
    """What a predictor needs of one version. `candidate_ids` is empty where answers are generated;
    `end` closes its answers (none, or the base's end token)."""

    version: PromptVersion
    rows: RowEncoder
    virtual_tokens: Tensor
    candidates: tuple[str, ...]
    candidate_ids: tuple[tuple[int, ...], ...]
    max_answer_tokens: int
    end: tuple[int, ...] = ()

    @classmethod
    def load(
        cls, version: PromptVersion, store: ArtifactStore, tokenizer: TextTokenizer, max_length: int
    ) -> "ServedPrompt":
        """Read a version's virtual tokens from the store; every byte and shape is checked.

        `max_length` is the base's context length; a version that cuts rows may have a shorter one.
        """
        rows = row_encoder(version.config, tokenizer, max_length)
        weights = store.get_bytes(version.artifacts["prompt_embeddings"].digest)
        end = tokenizer.eos_token_id if version.config["ends_answer"] else None
        ending = () if end is None else (end,)
        return cls._of(version, rows, read_virtual_tokens(version, weights), ending)

    @classmethod
    def manual(
        cls, version: PromptVersion, text: str, tokenizer: TextTokenizer, max_length: int
    ) -> "ServedPrompt":
        """`text`, a template without virtual tokens, in place of the version's own; its answers are
        not closed, as in training."""
        rows = row_encoder(version.config, tokenizer, max_length, text)
        return cls._of(version, rows, torch.zeros(0, version.config["token_dim"]), ())

    @classmethod
    def _of(
        cls, version: PromptVersion, rows: RowEncoder, tokens: Tensor, end: tuple[int, ...]
    ) -> "ServedPrompt":
        candidates = tuple(version.config["candidates"] or ())
        return cls(
            version=version,
            rows=rows,
            virtual_tokens=tokens,
            candidates=candidates,
            candidate_ids=tuple((*rows.encode_answer(text), *end) for text in candidates),
            max_answer_tokens=version.config["max_answer_tokens"],
            end=end,
        )

    def encode(self, fields: Mapping[str, str]) -> tuple[int, ...]:
        """The context's tokens, or InvalidData: a field is missing, or the row is too long."""
        try:
            return self.rows.encode_context(fields, self.max_answer_tokens)
        except TemplateError as error:
            raise InvalidData(f"{self.version.ref}: {error}") from error

    def encode_answer(self, context: tuple[int, ...], answer: str) -> tuple[int, ...]:
        """A given answer's tokens, closed as the version's own are, or InvalidData: it has none, or
        is too long behind `context`."""
        try:
            ids = self.rows.encode_answer(answer)
        except TemplateError as error:
            raise InvalidData(f"{self.version.ref}: {error}") from error
        ids += self.end
        length, most = len(context) + len(ids), self.rows.max_length
        if most is not None and length > most:
            raise InvalidData(
                f"{self.version.ref}: with an answer of {len(ids)} tokens the row has {length}; at "
                f"most {most} are allowed",
                "Give a shorter answer, or shorten the row's fields.",
            )
        return ids

    def encode_alike(self, value: str) -> tuple[int, ...] | None:
        """The context's tokens with `value` in all fields; None where that is no row."""
        try:
            return self.encode(dict.fromkeys(self.rows.template.fields, value))
        except InvalidData:
            return None

    @cached_property
    def opening(self) -> tuple[int, ...]:
        """What rows open with whatever their fields hold: virtual tokens and fixed text.

        Found on a few unlike values, so a row may still differ (a tokenizer merges as it likes).
        """
        contexts = [ids for value in _UNLIKE if (ids := self.encode_alike(value))]
        alike = takewhile(lambda ids: len(set(ids)) == 1, zip(*contexts, strict=False))
        return tuple(ids[0] for ids in alike)


def row_encoder(
    config: Mapping[str, Any],
    tokenizer: TextTokenizer,
    base_length: int | None,
    manual: str | None = None,
) -> RowEncoder:
    """The rule a version's rows were encoded by in training; older versions lack its later keys.
    `manual` in place of the version's template may lack the field that gives way."""
    text = config["template"] if manual is None else manual
    template = Template.parse(text, config["answer"], needs_prompt=manual is None)
    truncate = config.get("truncate")
    lengths = [each for each in (config.get("max_length"), base_length) if each is not None]
    return RowEncoder(
        template,
        tokenizer,
        min(lengths, default=None),
        truncate if truncate in template.fields else None,
        ChatMarkup(**config["chat"]) if "chat" in config else None,
    )


def read_virtual_tokens(version: PromptVersion, weights: bytes) -> Tensor:
    """The version's virtual tokens [V, D] from the bytes of its `prompt_embeddings`, whose digest
    was checked. Raises IntegrityError for other shapes and numbers."""
    shape = (version.config["num_virtual_tokens"], version.config["token_dim"])
    try:
        return load_tensors(weights, {"prompt_embeddings": shape})["prompt_embeddings"]
    except WeightsError as error:
        raise IntegrityError(f"{version.ref}: prompt_embeddings: {error}") from error
