"""A transformers model folder: which of its files make the model, and may they be loaded.

Only config.json, safetensors weights and tokenizer files count; all else in a folder is ignored.
Whatever would run code or unpickle is refused here, before torch is imported.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.domain.errors import InvalidModelFolder

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_JSON_BYTES = 64 << 20
MAX_TOKENIZER_BYTES = 512 << 20

#: Any of these makes a tokenizer; ByT5's has no vocabulary, only tokenizer_config.json.
VOCABULARIES = (
    *("tokenizer.json", "tokenizer_config.json", "vocab.json", "vocab.txt", "tekken.json"),
    *("*.model", "*.tiktoken"),
)
#: These change what a tokenizer does, chat templates included.
TOKENIZER_EXTRAS = (
    *("merges.txt", "added_tokens.json", "special_tokens_map.json"),
    *("chat_template.jinja", "chat_template.json", "additional_chat_templates/*.jinja"),
)
PICKLES = ("pytorch_model*.bin", "*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.h5")

#: Keys of config.json or tokenizer_config.json that name code, or weights outside the folder.
CODE_KEYS = frozenset({"auto_map", "trust_remote_code", "custom_pipelines", "transformers_weights"})


@dataclass(frozen=True)
class ModelFolder:
    """A folder's counted files, by name. `place` is what errors call it."""

    path: Path
    place: str
    config: Mapping[str, Any]
    weights: tuple[str, ...]
    tokenizer: tuple[str, ...]

    @property
    def files(self) -> tuple[str, ...]:
        return (CONFIG, *self.weights, *self.tokenizer)


def read_model_folder(path: Path, place: str = "") -> ModelFolder:
    """List and check a model folder without loading it; raise InvalidModelFolder."""
    place = place or str(path)
    if not path.is_dir():
        raise InvalidModelFolder(
            f"{place}: no such folder",
            "Give a folder with config.json and safetensors weights. Tutti downloads nothing: for "
            "a model of a hub, first run `hf download MODEL --local-dir FOLDER`.",
        )
    config = _read_config(path, place)
    return ModelFolder(path, place, config, _weights(path, place), _tokenizer(path, place))


def counted_files(path: Path) -> set[str]:
    """The names of the files in `path` that would count, were they listed."""
    names = set(_matching(path, (*VOCABULARIES, *TOKENIZER_EXTRAS, "*.safetensors", INDEX)))
    return names | ({CONFIG} if (path / CONFIG).exists() else set())


def _read_config(path: Path, place: str) -> Mapping[str, Any]:
    if not (path / CONFIG).is_file():
        is_adapter = (path / "adapter_config.json").exists()
        raise InvalidModelFolder(
            f"{place}: {CONFIG} is missing",
            "This is a PEFT adapter; give the folder of the base model it was trained on."
            if is_adapter
            else _gguf_remedy(path) or "Give a folder that save_pretrained of transformers wrote.",
        )
    config = _read_json(path / CONFIG, place)
    if "quantization_config" in config:
        raise InvalidModelFolder(
            f"{place}: the weights are quantized ({CONFIG} has quantization_config)",
            "Save the model dequantized, or add a GGUF file with --gguf, which dequantizes it.",
        )
    if not isinstance(config.get("model_type"), str):
        raise InvalidModelFolder(f"{place}: {CONFIG} has no model_type, so it names no model")
    return config


def _weights(path: Path, place: str) -> tuple[str, ...]:
    """The weight files transformers would load: one file, or the shards of an index."""
    if (path / WEIGHTS).is_file():
        return (WEIGHTS,)
    if (path / INDEX).is_file():
        return (INDEX, *_shards(path, place))
    pickles = sorted(_matching(path, PICKLES))
    if pickles:
        raise InvalidModelFolder(
            f"{place}: the weights are pickles ({pickles[0]}), which can run code when loaded",
            "Save them as safetensors: model.save_pretrained(folder) of transformers does.",
        )
    raise InvalidModelFolder(
        f"{place}: there are no weights; expected {WEIGHTS} or {INDEX}", _gguf_remedy(path)
    )


def _shards(path: Path, place: str) -> tuple[str, ...]:
    weight_map = _read_json(path / INDEX, place).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InvalidModelFolder(f"{place}: {INDEX} has no weight_map")
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        if name != Path(name).name or not name.endswith(".safetensors"):
            raise InvalidModelFolder(
                f"{place}: {INDEX} names {name!r}; a shard is a .safetensors file of the folder"
            )
        if not (path / name).is_file():
            raise InvalidModelFolder(f"{place}: the shard {name} that {INDEX} names is missing")
    return tuple(names)


def _tokenizer(path: Path, place: str) -> tuple[str, ...]:
    if not any(_matching(path, VOCABULARIES)):
        raise InvalidModelFolder(
            f"{place}: the tokenizer is missing; expected one of {', '.join(VOCABULARIES)}",
            "Save it beside the weights: tokenizer.save_pretrained(folder).",
        )
    names = tuple(sorted(_matching(path, (*VOCABULARIES, *TOKENIZER_EXTRAS))))
    for name in names:
        if (path / name).stat().st_size > MAX_TOKENIZER_BYTES:
            raise InvalidModelFolder(
                f"{place}: {name} has {(path / name).stat().st_size} bytes; a tokenizer file has "
                f"at most {MAX_TOKENIZER_BYTES}"
            )
    if "tokenizer_config.json" in names:
        _read_json(path / "tokenizer_config.json", place)
    return names


def _read_json(file: Path, place: str) -> dict[str, Any]:
    """A JSON object that names no code."""
    size = file.stat().st_size
    if size > MAX_JSON_BYTES:
        raise InvalidModelFolder(
            f"{place}: {file.name} has {size} bytes; expected at most {MAX_JSON_BYTES}"
        )
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
        code_keys = list(_code_keys(value))
    except (ValueError, RecursionError) as error:
        raise InvalidModelFolder(f"{place}: {file.name} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise InvalidModelFolder(f"{place}: {file.name} is not a JSON object")
    for key in code_keys:
        raise InvalidModelFolder(
            f"{place}: {file.name} has {key!r}, which names code or files outside the folder",
            "Tutti runs no code of a model; use a model whose class is part of transformers.",
        )
    return value


def _code_keys(value: Any) -> Iterator[str]:
    if isinstance(value, list):
        for item in value:
            yield from _code_keys(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            names_kernel = key.endswith("attn_implementation") and "/" in str(item)
            if (key in CODE_KEYS and item) or names_kernel:
                yield key
            yield from _code_keys(item)


def _matching(path: Path, patterns: tuple[str, ...]) -> set[str]:
    found = (file for pattern in patterns for file in path.glob(pattern) if file.is_file())
    return {file.relative_to(path).as_posix() for file in found}


def _gguf_remedy(path: Path) -> str:
    gguf = sorted(_matching(path, ("*.gguf",)))
    return f"The folder has a GGUF file: add it with --gguf {gguf[0]}." if gguf else ""
