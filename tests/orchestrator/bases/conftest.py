"""The tiny base model, to be stored and to be spoilt."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.bases.base_store import BaseStore
from tests.tiny import make_tiny_base


@pytest.fixture(scope="session")
def tiny_model_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_base(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def tiny_model(tiny_model_once: Path, tmp_path: Path) -> Path:
    """A model folder of the test's own, to be spoilt."""
    return Path(shutil.copytree(tiny_model_once, tmp_path / "tiny"))


@pytest.fixture
def edit_json(tiny_model: Path) -> Callable[..., None]:
    """Set keys of a JSON file of the model."""

    def edit(name: str = "config.json", **keys: Any) -> None:
        value = json.loads((tiny_model / name).read_text())
        (tiny_model / name).write_text(json.dumps(value | keys))

    return edit


@pytest.fixture
def store(tmp_path: Path) -> BaseStore:
    return BaseStore(tmp_path / "bases")
