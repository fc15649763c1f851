"""A real, empty MLflow on SQLite, and versions for it."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from orchestrator.artifacts.artifact_store import ArtifactStore
from orchestrator.domain.prompt_version import Lineage, PromptVersion, TrainedPrompt
from orchestrator.tracking.mlflow_client import open_client
from orchestrator.tracking.mlflow_mirror import MlflowMirror
from tests.orchestrator.tracking.memory_registry import MemoryOutbox, MemoryRegistry, tiny_curve


@pytest.fixture
def artifacts(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(str(tmp_path / "artifacts"))


@pytest.fixture
def registry() -> MemoryRegistry:
    return MemoryRegistry()


@pytest.fixture
def outbox(registry: MemoryRegistry) -> MemoryOutbox:
    return MemoryOutbox(registry)


def make_trained(artifacts: ArtifactStore, task: str, seed: int) -> TrainedPrompt:
    """What training hands over for one task; `seed` makes it different."""
    return TrainedPrompt(
        task=task,
        config={
            "num_virtual_tokens": 10,
            "metric": "accuracy",
            "candidates": ["Asia", "Europe"],
            "encoder": {"type": "mlp", "hidden_size": 128},
        },
        metrics={"accuracy": 0.776, "loss": 0.71, "manual_accuracy": 0.653}
        | {"held_out_rows": 124.0, "seconds": 30.0},
        artifacts={
            "encoder": artifacts.put_bytes(f"encoder {task} {seed}".encode()),
            "prompt_embeddings": artifacts.put_bytes(b"embeddings"),
            "curve": artifacts.put_bytes(json.dumps(tiny_curve()).encode()),
        },
        lineage=Lineage(
            base="smollm2-135m",
            base_fingerprint="f" * 64,
            datasets={"train": "1" * 64, "eval": "2" * 64},
            num_rows={"train": 123, "eval": 124},
            spec_digest="3" * 64,
            seed=seed,
            code_version="0.1.0",
            job="job-1",
        ),
    )


@pytest.fixture(name="make_trained")
def make_trained_here(artifacts: ArtifactStore) -> Callable[[str, int], TrainedPrompt]:
    return partial(make_trained, artifacts)


@pytest.fixture
def make_version(
    make_trained: Callable[[str, int], TrainedPrompt],
    registry: MemoryRegistry,
    outbox: MemoryOutbox,
    artifacts: ArtifactStore,
) -> Callable[..., PromptVersion]:
    """Register a version, and post that it is there."""

    def make(
        task: str = "country-continent", number: int = 1, sweep: dict[str, Any] | None = None
    ) -> PromptVersion:
        trained = make_trained(task, number)
        if sweep is not None:
            stored = artifacts.put_bytes(json.dumps(sweep).encode())
            trained = replace(trained, artifacts={**trained.artifacts, "sweep": stored})
        version = PromptVersion(
            **vars(trained),
            number=number,
            digest=trained.digest,
            created_at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        )
        registry.versions[task, number] = version
        outbox.post("version_registered", task=task, number=number)
        return version

    return make


@pytest.fixture(scope="session")
def empty_mlflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database with its tables and nothing in them, which takes seconds to make."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    open_client(f"sqlite:///{path}").search_experiments(max_results=1)
    return path


@pytest.fixture
def tracking_uri(tmp_path: Path, empty_mlflow: Path) -> str:
    (tmp_path / "home").mkdir()
    shutil.copyfile(empty_mlflow, tmp_path / "home" / "mlflow.db")
    return f"sqlite:///{tmp_path}/home/mlflow.db"


@pytest.fixture
def make_mirror(
    tmp_path: Path, outbox: MemoryOutbox, registry: MemoryRegistry, artifacts: ArtifactStore
) -> Any:
    def make(tracking_uri: str) -> MlflowMirror:
        root = tmp_path / "home" / "mlartifacts" if tracking_uri.startswith("sqlite") else None
        return MlflowMirror(tracking_uri, outbox, registry, artifacts, artifact_root=root)  # type: ignore[arg-type]

    return make


@pytest.fixture
def mirror(make_mirror: Callable[[str], MlflowMirror], tracking_uri: str) -> MlflowMirror:
    return make_mirror(tracking_uri)
