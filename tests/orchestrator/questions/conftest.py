"""A registry with a tiny base, and versions on it with random virtual tokens."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from encoders.files.weights_file import dump_tensors
from orchestrator.domain.prompt_version import Lineage, PromptVersion, TrainedPrompt
from orchestrator.sdk import Tutti
from orchestrator.settings import read_settings
from tests.tiny import make_tiny_base

NUM_TOKENS, WIDTH = 4, 64
CONFIG = {
    "num_virtual_tokens": NUM_TOKENS,
    "token_dim": WIDTH,
    "template": "{word}:{prompt:4} {colour}",
    "answer": "colour",
    "metric": "accuracy",
    "candidates": ["red", "blue"],
    "ends_answer": False,
    "max_answer_tokens": 5,
    "encoder": {"type": "mlp", "hidden_size": 16},
    "training": {"steps": 4},
}


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def other_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_base(tmp_path_factory.mktemp("other-base"), seed=1)


def open_home(home: Path) -> Tutti:
    return Tutti(read_settings({"TUTTI_HOME": str(home)}, home))


@pytest.fixture(scope="session")
def home_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    with open_home(home) as tutti:
        tutti.add_base("tiny", make_tiny_base(tmp_path_factory.mktemp("base")))
    return home


@pytest.fixture
def tutti(home_template: Path, tmp_path: Path) -> Iterator[Tutti]:
    with open_home(Path(shutil.copytree(home_template, tmp_path / "home"))) as opened:
        yield opened


Register = Callable[..., PromptVersion]


@pytest.fixture
def register(tutti: Tutti) -> Register:
    """Registers a version on the base that is `tiny` now; `seed` decides its virtual tokens, or
    `tokens` are these."""

    def make(
        seed: int = 0,
        tokens: torch.Tensor | None = None,
        task: str = "colour",
        job: str | None = None,
        metrics: dict[str, float] | None = None,
        lineage: dict[str, Any] | None = None,
        **config: Any,
    ) -> PromptVersion:
        if tokens is None:
            tokens = torch.randn(NUM_TOKENS, WIDTH, generator=torch.Generator().manual_seed(seed))
        weights = tutti.parts.artifacts.put_bytes(dump_tensors({"prompt_embeddings": tokens}))
        made = Lineage("tiny", tutti.base("tiny").fingerprint, {}, {}, "s" * 64, 0, "0.1.0", job)
        trained = TrainedPrompt(
            task,
            {**CONFIG, **config},
            metrics or {"accuracy": 0.5},
            {"encoder": weights, "prompt_embeddings": weights},
            replace(made, **(lineage or {})),
        )
        return tutti.parts.prompts.register(trained)[0]

    return make
