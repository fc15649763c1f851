"""A registry with real artifacts, on SQLite and on PostgreSQL."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from encoders.files.weights_file import dump_tensors
from orchestrator.artifacts.artifact_store import ArtifactStore
from orchestrator.artifacts.store_files import StoreFiles
from orchestrator.domain.digest import digest_json
from orchestrator.domain.prompt_version import Lineage, TrainedPrompt
from tests.orchestrator.registry.conftest import (
    BASE,
    database,
    database_url,
    dialect,
    empty_postgres,
    empty_url,
    new_postgres_url,
    outbox,
    postgres_uri,
    queue,
    registry,
    running,
    sqlite_template,
    submission,
)

__all__ = (
    "database",
    "database_url",
    "dialect",
    "empty_postgres",
    "empty_url",
    "new_postgres_url",
    "outbox",
    "postgres_uri",
    "queue",
    "registry",
    "running",
    "sqlite_template",
    "submission",
)

CONFIG = {
    "peft_type": "P_TUNING",
    "task_type": "CAUSAL_LM",
    "num_virtual_tokens": 2,
    "token_dim": 4,
    "template": "{text}{prompt:2} {label}",
    "answer": "label",
    "metric": "accuracy",
    "candidates": ["red", "blue"],
    "ends_answer": False,
    "max_answer_tokens": 1,
    "encoder": {"type": "mlp", "hidden_size": 4},
}
MakeTrained = Callable[..., TrainedPrompt]


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(str(tmp_path / "store"))


@pytest.fixture
def files(store: ArtifactStore) -> StoreFiles:
    return StoreFiles(store.url)


@pytest.fixture
def make_trained(store: ArtifactStore) -> MakeTrained:
    """A result whose artifacts are in the store; `seed` makes it different."""

    def make(task: str = "color", seed: int = 0) -> TrainedPrompt:
        generator = torch.Generator().manual_seed(seed)
        tokens = torch.randn(2, 4, generator=generator)
        artifacts = {
            "encoder": store.put_bytes(dump_tensors({"embedding.weight": tokens + 1})),
            "prompt_embeddings": store.put_bytes(dump_tensors({"prompt_embeddings": tokens})),
            "curve": store.put_bytes(json.dumps({"loss": [[1, seed]]}).encode()),
        }
        data = {"train": digest_json(["rows", seed])}
        lineage = Lineage("tiny", BASE, data, {"train": 8}, digest_json("spec"), seed, "0.1.0")
        metrics = {"accuracy": 0.5, "seconds": 3.0}
        return TrainedPrompt(task, CONFIG, metrics, artifacts, lineage)

    return make
