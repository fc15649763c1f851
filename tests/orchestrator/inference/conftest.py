"""Two tiny bases, and prompt versions on them with random virtual tokens."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch

from encoders.files.weights_file import dump_tensors
from encoders.text.tokenization import TextTokenizer
from orchestrator.artifacts.artifact_store import ArtifactStore
from orchestrator.domain.prompt_version import Lineage, PromptVersion, TrainedPrompt
from tests.tiny import make_tiny_base

WIDTH = 64
MAX_LENGTH = 256


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass(frozen=True)
class Base:
    """A base's folder under its (made-up) fingerprint."""

    fingerprint: str
    folder: Path


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> tuple[Base, Base]:
    first, second = (
        Base(letter * 64, make_tiny_base(tmp_path_factory.mktemp(f"base-{letter}"), seed=seed))
        for seed, letter in enumerate("ab")
    )
    return first, second


@pytest.fixture(scope="session")
def tokenizer(bases: tuple[Base, Base]) -> TextTokenizer:
    return TextTokenizer.load(bases[0].folder)


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> ArtifactStore:
    return ArtifactStore(str(tmp_path_factory.mktemp("artifacts")))


MakeVersion = Callable[..., PromptVersion]


@pytest.fixture(scope="session")
def make_version(store: ArtifactStore, bases: tuple[Base, Base]) -> MakeVersion:
    """A version with random virtual tokens; without `candidates`, its answers are generated."""
    seeds = itertools.count()

    def make(
        task: str = "colour",
        base: Base = bases[0],
        candidates: tuple[str, ...] | None = ("red", "blue"),
        number: int = 1,
        template: str = "{word}:{prompt:4} {colour}",
        **config: Any,
    ) -> PromptVersion:
        generator = torch.Generator().manual_seed(next(seeds))
        tokens = torch.randn(4, WIDTH, generator=generator)
        artifact = store.put_bytes(dump_tensors({"prompt_embeddings": tokens}))
        trained = TrainedPrompt(
            task=task,
            config={
                "num_virtual_tokens": 4,
                "token_dim": WIDTH,
                "template": template,
                "answer": "colour",
                "metric": "accuracy" if candidates else "exact_match",
                "candidates": list(candidates) if candidates else None,
                "ends_answer": candidates is None,
                "max_answer_tokens": 5,
                **config,
            },
            metrics={},
            artifacts={"encoder": artifact, "prompt_embeddings": artifact},
            lineage=Lineage("tiny", base.fingerprint, {}, {}, "s", 0, "0.1.0"),
        )
        made = datetime(2026, 1, 1, tzinfo=UTC)
        return PromptVersion(**vars(trained), number=number, digest=trained.digest, created_at=made)

    return make
