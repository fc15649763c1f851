"""A prompt version made ready to answer: its template, candidates and virtual tokens."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

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


@dataclass(frozen=True)
class ServedPrompt:
    """What a predictor needs of one version. `candidate_ids` is empty where answers are
    generated."""

    version: PromptVersion
    rows: RowEncoder
    virtual_tokens: Tensor
    candidates: tuple[str, ...]
    candidate_ids: tuple[tuple[int, ...], ...]
    max_answer_tokens: int

    @classmethod
    def load(
        cls, version: PromptVersion, store: ArtifactStore, tokenizer: TextTokenizer, max_length: int
    ) -> "ServedPrompt":
        """Read a version's virtual tokens from the store; every byte and shape is checked.

        `max_length` is the base's context length; a version that cuts rows may have a shorter one.
        """
        config: Mapping[str, Any] = version.config
        rows = row_encoder(config, tokenizer, max_length)
        weights = store.get_bytes(version.artifacts["prompt_embeddings"].digest)
        candidates = tuple(config["candidates"] or ())
        end = (tokenizer.eos_token_id,) if config["ends_answer"] else ()
        return cls(
            version=version,
            rows=rows,
            virtual_tokens=read_virtual_tokens(version, weights),
            candidates=candidates,
            candidate_ids=tuple((*rows.encode_answer(text), *end) for text in candidates),
            max_answer_tokens=config["max_answer_tokens"],
        )

    def encode(self, fields: Mapping[str, str]) -> tuple[int, ...]:
        """The context's tokens, or InvalidData: a field is missing, or the row is too long."""
        try:
            return self.rows.encode_context(fields, self.max_answer_tokens)
        except TemplateError as error:
            raise InvalidData(f"{self.version.ref}: {error}") from error


def row_encoder(
    config: Mapping[str, Any], tokenizer: TextTokenizer, base_length: int | None
) -> RowEncoder:
    """The rule a version's rows were encoded by in training; older versions lack its later keys."""
    lengths = [each for each in (config.get("max_length"), base_length) if each is not None]
    return RowEncoder(
        Template.parse(config["template"], config["answer"]),
        tokenizer,
        min(lengths, default=None),
        config.get("truncate"),
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
