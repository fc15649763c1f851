"""A plain spec, and what becomes of it when a key is changed."""

from collections.abc import Callable
from typing import Any

import pytest

from orchestrator.domain.task_spec import TaskSpec

SPEC: dict[str, Any] = {
    "task": "country-continent",
    "base": "tiny",
    "template": "{country}:{prompt:10} {continent}",
    "answer": "continent",
    "data": {"train": "train.jsonl", "eval": "eval.jsonl"},
}


@pytest.fixture
def make_spec() -> Callable[..., TaskSpec]:
    def make(**changes: Any) -> TaskSpec:
        return TaskSpec.model_validate({**SPEC, **changes})

    return make
