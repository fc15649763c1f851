"""Converts a GGUF file, once, to a plain transformers folder in fp32: the dequantized weights.

transformers reads the file but cannot save what it read, so the tensors go into a fresh model.
"""

import importlib
from functools import partial
from pathlib import Path
from typing import Any

from orchestrator.bases.model_check import LOCAL, check_loading_info, explained
from orchestrator.bases.model_folder import CONFIG, WEIGHTS
from orchestrator.bases.quiet_transformers import quiet_transformers
from orchestrator.domain.errors import InvalidModelFolder

MAGIC = b"GGUF"


def find_gguf(source: Path, gguf: str | None) -> Path | None:
    """The GGUF file to convert: `source` itself, `gguf` inside it, or the path `gguf`; or None."""
    if gguf is None:
        return source if source.suffix == ".gguf" and source.is_file() else None
    if ".." in Path(gguf).parts:
        raise InvalidModelFolder(
            f"--gguf {gguf}: the path contains '..'",
            "Give a file name inside the folder, or an absolute path.",
        )
    for path in (source / gguf, Path(gguf)):
        if path.is_file():
            return path
    found = ", ".join(sorted(path.name for path in source.glob("*.gguf")))
    raise InvalidModelFolder(
        f"--gguf {gguf}: no such file, neither in {source} nor as a path",
        f"GGUF files in {source}: {found or 'none'}.",
    )


def convert_gguf(gguf: Path, to: Path) -> None:
    """Write config.json, model.safetensors (fp32) and the tokenizer of `gguf` into `to`."""
    with gguf.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise InvalidModelFolder(f"{gguf}: not a GGUF file: it does not start with 'GGUF'")
    with quiet_transformers() as transformers:
        model, tokenizer = explained(str(gguf), "the GGUF file", lambda: _load(gguf, transformers))
        model.save_pretrained(to)
        tokenizer.save_pretrained(to)
    (to / "generation_config.json").unlink(missing_ok=True)
    (to / WEIGHTS).chmod((to / CONFIG).stat().st_mode)  # safetensors lets only the owner read


def _load(gguf: Path, transformers: Any) -> tuple[Any, Any]:
    import torch

    _silence_reader()
    quantized, info = transformers.AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=torch.float32,
        output_loading_info=True,
        **LOCAL,
    )
    check_loading_info(str(gguf), info)
    config = quantized.config
    del config.quantization_config
    with torch.device("meta"):
        model = type(quantized)(config)
    model.load_state_dict(quantized.state_dict(), assign=True)
    model.tie_weights()
    load = transformers.AutoTokenizer.from_pretrained
    return model, load(gguf.parent, gguf_file=gguf.name, **LOCAL)


def _silence_reader() -> None:
    """Its progress bar is tqdm's own, which transformers' switch does not reach."""
    reader: Any = importlib.import_module("transformers.modeling_gguf_pytorch_utils")
    if not isinstance(reader.tqdm, partial):
        reader.tqdm = partial(reader.tqdm, disable=True)
