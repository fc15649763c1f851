"""A random tiny Llama with ByT5's tokenizer, which has no vocabulary file."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.bases.base_store import BaseStore
from orchestrator.bases.quiet_transformers import quiet_transformers


@pytest.fixture(scope="session")
def tiny_model_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    folder = tmp_path_factory.mktemp("models") / "tiny"
    with quiet_transformers() as transformers:
        torch.manual_seed(0)
        config = transformers.LlamaConfig(
            vocab_size=384,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=256,
        )
        transformers.LlamaForCausalLM(config).save_pretrained(folder)
        transformers.ByT5Tokenizer().save_pretrained(folder)
    return folder


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
