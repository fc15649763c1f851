"""A prompt version made ready to answer: its template, candidates and virtual tokens."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from encoders.errors import TemplateError, WeightsError
from encoders.template import Template
from encoders.tokenization import TextTokenizer
from encoders.weights_file import load_tensors
from orchestrator.artifacts.artifact_store import ArtifactStore
from orchestrator.domain.errors import IntegrityError, InvalidData
from orchestrator.domain.prompt_version import PromptVersion


@dataclass(frozen=True)
class ServedPrompt:
    """What a predictor needs of one version. `candidate_ids` is empty where answers are
    generated."""

    version: PromptVersion
    template: Template
    virtual_tokens: Tensor
    candidates: tuple[str, ...]
    candidate_ids: tuple[tuple[int, ...], ...]
    max_answer_tokens: int
    max_length: int

    @classmethod
    def load(
        cls, version: PromptVersion, store: ArtifactStore, tokenizer: TextTokenizer, max_length: int
    ) -> "ServedPrompt":
        """Read a version's virtual tokens from the store; every byte and shape is checked."""
        config: Mapping[str, Any] = version.config
        template = Template.parse(config["template"], config["answer"])
        candidates = tuple(config["candidates"] or ())
        end = (tokenizer.eos_token_id,) if config["ends_answer"] else ()
        return cls(
            version=version,
            template=template,
            virtual_tokens=_virtual_tokens(version, store),
            candidates=candidates,
            candidate_ids=tuple(
                (*template.encode_answer(text, tokenizer.encode), *end) for text in candidates
            ),
            max_answer_tokens=config["max_answer_tokens"],
            max_length=max_length,
        )

    def encode(self, fields: Mapping[str, str], tokenizer: TextTokenizer) -> tuple[int, ...]:
        """The context's tokens, or InvalidData: a field is missing, or the row is too long."""
        try:
            context = self.template.encode_context(fields, tokenizer.encode, tokenizer.bos_token_id)
        except TemplateError as error:
            raise InvalidData(f"{self.version.ref}: {error}") from error
        length = len(context) + self.max_answer_tokens
        if length > self.max_length:
            raise InvalidData(
                f"{self.version.ref}: the row has {length} tokens with its answer; at most "
                f"{self.max_length} are allowed"
            )
        return context


def _virtual_tokens(version: PromptVersion, store: ArtifactStore) -> Tensor:
    config = version.config
    shape = (config["num_virtual_tokens"], config["token_dim"])
    data = store.get_bytes(version.artifacts["prompt_embeddings"].digest)
    try:
        return load_tensors(data, {"prompt_embeddings": shape})["prompt_embeddings"]
    except WeightsError as error:
        raise IntegrityError(f"{version.ref}: prompt_embeddings: {error}") from error
