"""Loads a model folder once, to prove that transformers can, and takes its facts.

Weights must fill the model exactly: no missing, unexpected or mismatched tensor. Sizes are compared
with the weights before anything of that size is allocated.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from orchestrator.bases.model_folder import ModelFolder
from orchestrator.bases.quiet_transformers import quiet_transformers
from orchestrator.domain.errors import InvalidModelFolder

MAX_LAYERS = 4096
#: The context length where neither model nor tokenizer has a limit.
NO_LIMIT = 1 << 20
SAMPLE_TEXT = "The capital of France is"
LOCAL = {"local_files_only": True, "trust_remote_code": False}

T = TypeVar("T")


@dataclass(frozen=True)
class ModelFacts:
    """What a base model's record says of it. `hidden_size` is the width of its embeddings."""

    architecture: str
    num_parameters: int
    hidden_size: int
    max_length: int


def check_model(folder: ModelFolder) -> ModelFacts:
    """Load config, weights and tokenizer; raise InvalidModelFolder if they do not fit together."""
    with quiet_transformers() as transformers:
        config = _load_config(folder, transformers)
        _check_size(folder, config, transformers)
        model = _load_model(folder, config, transformers)
        tokenizer = _load_tokenizer(folder, model, transformers)
    return ModelFacts(
        architecture=type(model).__name__,
        num_parameters=model.num_parameters(),
        hidden_size=model.get_input_embeddings().weight.shape[1],
        max_length=_max_length(config, tokenizer),
    )


def check_loading_info(place: str, info: dict[str, Any]) -> None:
    """Raise InvalidModelFolder if transformers could not fill the model exactly."""
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        keys = sorted(map(_described, info[kind]))
        if keys:
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            raise InvalidModelFolder(
                f"{place}: the weights do not match the config: {kind.removesuffix('_keys')} "
                f"{', '.join(keys[:3])}{more}",
                "Give a folder whose config.json and weights were saved together.",
            )


def _described(key: Any) -> str:
    """A key, or of a mismatch (key, stored shape, expected shape)."""
    if isinstance(key, str):
        return key
    name, stored, expected = key
    return f"{name} (stored {list(stored)}, expected {list(expected)})"


def explained(place: str, what: str, load: Callable[[], T]) -> T:
    """Return `load()`; whatever it raises becomes an InvalidModelFolder."""
    try:
        return load()
    except InvalidModelFolder:
        raise
    except Exception as error:  # transformers raises nearly every kind for a broken file
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        raise InvalidModelFolder(
            f"{place}: {what} cannot be loaded: {reason}",
            "The files must be complete, and of an architecture that this transformers knows.",
        ) from error


def _load_config(folder: ModelFolder, transformers: Any) -> Any:
    auto = transformers.AutoConfig
    config = explained(
        folder.place, "config.json", lambda: auto.from_pretrained(folder.path, **LOCAL)
    )
    causal = transformers.AutoModelForCausalLM._model_mapping
    expected = causal[type(config)].__name__ if type(config) in causal else None
    named = folder.config.get("architectures") or [expected]
    if expected is None or expected not in named:
        hint = f"; expected {expected}" if expected else ""
        raise InvalidModelFolder(
            f"{folder.place}: {', '.join(map(str, named))} (model type {config.model_type!r}) is "
            f"not a causal language model{hint}",
            "Prompts are trained on causal language models, like LlamaForCausalLM.",
        )
    return config


def _check_size(folder: ModelFolder, config: Any, transformers: Any) -> None:
    """Compare the config's number of parameters, counted without memory, with the weights'."""
    import torch

    num_layers = config.get_text_config().num_hidden_layers
    if not 1 <= num_layers <= MAX_LAYERS:
        raise InvalidModelFolder(
            f"{folder.place}: num_hidden_layers is {num_layers}; expected 1 to {MAX_LAYERS}"
        )
    num_stored = explained(folder.place, "the weights", lambda: _num_elements(folder))
    build = transformers.AutoModelForCausalLM.from_config
    with torch.device("meta"):
        empty = explained(folder.place, "config.json", lambda: build(config))
    if empty.num_parameters() > 2 * num_stored:
        raise InvalidModelFolder(
            f"{folder.place}: config.json describes {empty.num_parameters()} parameters, the "
            f"weights hold {num_stored}",
            "Give a folder whose config.json and weights were saved together.",
        )


def _num_elements(folder: ModelFolder) -> int:
    from safetensors import safe_open

    total = 0
    for name in folder.weights:
        if name.endswith(".safetensors"):
            with safe_open(folder.path / name, "pt") as file:
                shapes = [file.get_slice(key).get_shape() for key in list(file.keys())]
            total += sum(map(math.prod, shapes))
    return total


def _load_model(folder: ModelFolder, config: Any, transformers: Any) -> Any:
    """The weights are mapped, not read: a large base needs no memory of its size here."""
    model, info = explained(
        folder.place,
        "the weights",
        lambda: transformers.AutoModelForCausalLM.from_pretrained(
            folder.path,
            config=config,
            dtype="auto",
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **LOCAL,
        ),
    )
    check_loading_info(folder.place, info)
    return model


def _load_tokenizer(folder: ModelFolder, model: Any, transformers: Any) -> Any:
    load = transformers.AutoTokenizer.from_pretrained
    tokenizer = explained(folder.place, "the tokenizer", lambda: load(folder.path, **LOCAL))
    ids = tokenizer(SAMPLE_TEXT, add_special_tokens=False)["input_ids"]
    num_embeddings = model.get_input_embeddings().weight.shape[0]
    if not ids or max(ids) >= num_embeddings or set(ids) == {tokenizer.unk_token_id}:
        raise InvalidModelFolder(
            f"{folder.place}: the tokenizer does not fit the model: {SAMPLE_TEXT!r} gives the "
            f"token ids {ids[:8]}, the model embeds 0 to {num_embeddings - 1}",
            "Save the model's own tokenizer beside the weights.",
        )
    return tokenizer


def _max_length(config: Any, tokenizer: Any) -> int:
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    for length in (positions, tokenizer.model_max_length):
        if isinstance(length, int) and 0 < length <= NO_LIMIT:
            return length
    return NO_LIMIT
