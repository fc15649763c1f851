"""In-memory stand-ins for the outbox and the registry, and a curve to mirror."""

import math
from dataclasses import dataclass, field, replace
from typing import Any

from orchestrator.domain.errors import UnknownName
from orchestrator.domain.prompt_version import PromptRef, PromptVersion

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
