"""In-memory stand-ins for the outbox and the registry, and versions to mirror."""

import json
import math
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from orchestrator.artifacts.artifact_store import ArtifactStore
from orchestrator.domain.errors import UnknownName
from orchestrator.domain.prompt_version import Lineage, PromptRef, PromptVersion, TrainedPrompt
from orchestrator.tracking.mlflow_mirror import MlflowMirror

NUM_STEPS = 60


@dataclass
class Item:
    id: int
    kind: str
    payload: dict[str, Any]
    attempts: int = 0
    last_error: str | None = None
    is_delivered: bool = False


@dataclass
class MemoryRegistry:
    """Versions by task and number."""

    versions: dict[tuple[str, int], PromptVersion] = field(default_factory=dict)

    def resolve(self, ref: PromptRef) -> PromptVersion:
        assert isinstance(ref.target, int)
        if (ref.task, ref.target) not in self.versions:
            raise UnknownName(f"there is no version {ref}")
        return self.versions[ref.task, ref.target]


@dataclass
class MemoryOutbox:
    """Items in order; links go to the registry's versions, as in SQL."""

    registry: MemoryRegistry
    items: list[Item] = field(default_factory=list)

    def post(self, kind: str, **payload: Any) -> Item:
        self.items.append(Item(len(self.items) + 1, kind, payload))
        return self.items[-1]

    def pending(self, limit: int = 100) -> list[Item]:
        return [item for item in self.items if not item.is_delivered][:limit]

    def num_pending(self) -> int:
        return len(self.pending(len(self.items)))

    def delivered(self, item_id: int) -> None:
        self.items[item_id - 1].is_delivered = True

    def failed(self, item_id: int, error: str) -> None:
        item = self.items[item_id - 1]
        item.attempts, item.last_error = item.attempts + 1, error

    def link(self, version: tuple[str, int], run_id: str, model_version: str | None) -> None:
        known = self.registry.versions[version]
        self.registry.versions[version] = replace(known, run_id=run_id, model_version=model_version)


def tiny_curve(num_steps: int = NUM_STEPS) -> dict[str, list[tuple[int, float]]]:
    steps = range(1, num_steps + 1)
    scores = range(num_steps // 4, num_steps + 1, num_steps // 4)
    return {
        "loss": [(s, 8 * math.exp(-s / 6) + 0.6 + 0.3 * math.sin(s * s)) for s in steps],
        "learning_rate": [(s, 0.01 * (1 - s / num_steps)) for s in steps],
        "eval_accuracy": [(s, 0.8 - 0.5 * math.exp(-s / 20)) for s in scores],
        "eval_loss": [(s, 3 * math.exp(-s / 8) + 0.7) for s in scores],
    }


@pytest.fixture
def artifacts(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(str(tmp_path / "artifacts"))


@pytest.fixture
def registry() -> MemoryRegistry:
    return MemoryRegistry()


@pytest.fixture
def outbox(registry: MemoryRegistry) -> MemoryOutbox:
    return MemoryOutbox(registry)


@pytest.fixture
def make_version(artifacts: ArtifactStore, registry: MemoryRegistry, outbox: MemoryOutbox) -> Any:
    """Register a version, and post that it is there."""

    def make(task: str = "country-continent", number: int = 1, **changes: Any) -> PromptVersion:
        trained = TrainedPrompt(
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
                "encoder": artifacts.put_bytes(f"encoder {task} {number}".encode()),
                "prompt_embeddings": artifacts.put_bytes(b"embeddings"),
                "curve": artifacts.put_bytes(json.dumps(tiny_curve()).encode()),
            },
            lineage=Lineage(
                base="smollm2-135m",
                base_fingerprint="f" * 64,
                datasets={"train": "1" * 64, "eval": "2" * 64},
                num_rows={"train": 123, "eval": 124},
                spec_digest="3" * 64,
                seed=0,
                code_version="0.1.0",
                job="job-1",
            ),
        )
        version = PromptVersion(
            **vars(trained),
            number=number,
            digest=trained.digest,
            created_at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        )
        registry.versions[task, number] = replace(version, **changes)
        outbox.post("version_registered", task=task, number=number)
        return registry.versions[task, number]

    return make


@pytest.fixture
def tracking_uri(tmp_path: Path) -> str:
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
def mirror(make_mirror: Any, tracking_uri: str) -> MlflowMirror:
    return make_mirror(tracking_uri)
