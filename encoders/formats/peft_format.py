"""PEFT's adapter folders, both ways: `adapter_config.json` and `adapter_model.safetensors`.

Real PEFT loads what is written here and writes what is read here, bit for bit. A folder holds
exactly the tensors its config implies, and beside them at most the base's heads that the config
names, as PEFT keys them. Only safetensors are read. Sources: PEFT's `peft_model.py`
(`save_pretrained`) and `utils/save_and_load.py`.

Shapes: V virtual tokens (of encoder and decoder together), D token_dim, L layers, N tasks, R ranks.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor, nn

from encoders.config import (
    CONFIG_NAME,
    MultitaskPromptTuningConfig,
    PromptLearningConfig,
    TaskType,
)
from encoders.errors import WeightsError
from encoders.files.durable_file import write_durably
from encoders.files.weights_file import check_finite, check_tensors, dump_tensors, open_weights
from encoders.files.weights_header import PROMPT_DTYPES, TensorEntry
from encoders.modules.eval_mode import eval_mode
from encoders.modules.prompt_factory import get_prompt_encoder
from encoders.modules.task_head import HEADS

KIND = "adapter"
WEIGHTS_NAME = "adapter_model.safetensors"
MAX_ADAPTER_BYTES = 1 << 34
_TABLE = "prompt_embeddings"
_HEAD_PREFIX = "base_model."  # PEFT's, for what prompt methods save of the base
_PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl"}


@dataclass(frozen=True)
class Adapter:
    """What an adapter folder holds.

    `tensors` by PEFT's names: `prompt_embeddings` [V, D] (prefix tuning: [V, L*2*D]); multitask
    also `prefix_task_cols` [N, V, R] and `prefix_task_rows` [N, R, D]. `heads` by their names in
    the base's state dict ("classifier.weight"). All are float32, float16 or bfloat16, as in the
    file. `is_pefts` says that PEFT wrote it, which uses a table in its own way where a base has an
    encoder and a decoder. Raises WeightsError where they do not fit the config.
    """

    config: PromptLearningConfig
    tensors: Mapping[str, Tensor]
    heads: Mapping[str, Tensor]
    is_pefts: bool = False

    def __post_init__(self) -> None:
        _check(self.config, self.file_tensors, type(self.config).__name__)

    @property
    def file_tensors(self) -> dict[str, Tensor]:
        """All tensors, named as in the file."""
        heads = {_HEAD_PREFIX + name: tensor for name, tensor in self.heads.items()}
        return {**self.tensors, **heads}

    def module(self) -> nn.Module:
        """A new frozen float32 module that returns the table. Takes no random numbers."""
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            module = get_prompt_encoder(replace(self.config, inference_mode=True))
        state = {
            "embedding.weight" if name == _TABLE else name: tensor.to(torch.float32, copy=True)
            for name, tensor in self.tensors.items()
        }
        module.load_state_dict(state, assign=True)
        return module.requires_grad_(False).eval()


def adapter_shapes(config: PromptLearningConfig) -> dict[str, tuple[int, ...]]:
    """The tensors an adapter of this config holds. Raises ConfigError where a size is missing."""
    shapes: dict[str, tuple[int, ...]] = {_TABLE: config.table_shape}
    if isinstance(config, MultitaskPromptTuningConfig):
        rows, columns = config.table_shape
        shapes["prefix_task_cols"] = (config.num_tasks, rows, config.num_ranks)
        shapes["prefix_task_rows"] = (config.num_tasks, config.num_ranks, columns)
    return shapes


def save_adapter(
    folder: str | Path,
    config: PromptLearningConfig,
    module: nn.Module,
    heads: Mapping[str, Tensor] | None = None,
    is_pefts: bool = False,
) -> None:
    """Write a trained prompt as an adapter folder that PEFT's `PeftModel.from_pretrained` loads.

    `module` is any that gives the virtual tokens of table rows [B, V]; it runs without dropout.
    `heads` are the base's trained heads, named as in its state dict; a classifying task needs them,
    or `{}` for a base that has none of PEFT's names. Raises WeightsError and ConfigError.
    """
    if heads is None and config.task_type in HEADS:
        raise WeightsError(
            f"{config.task_type} trains a head, and PEFT loads no such adapter without it: give "
            "heads={'classifier.weight': ...}, named as in the base's state dict"
        )
    write_adapter(folder, Adapter(config, _tensors_of(config, module), heads or {}, is_pefts))


def write_adapter(folder: str | Path, adapter: Adapter) -> None:
    """Write an adapter folder: each file whole or absent, never two that do not belong together.

    Raises WeightsError for numbers that are not finite; then nothing is changed.
    """
    folder = Path(folder)
    config = replace(adapter.config, inference_mode=True)
    text = json.dumps(config.to_dict(), indent=2, sort_keys=True).encode()
    tensors = adapter.file_tensors
    check_finite(tensors, str(folder))
    config_path = folder / CONFIG_NAME
    if config_path.is_file() and config_path.read_bytes() != text:
        config_path.unlink()  # a kill from here on leaves no config, which is refused on load
    mark = None if adapter.is_pefts else {"kind": KIND}
    write_durably(folder / WEIGHTS_NAME, [dump_tensors(tensors, mark)])
    write_durably(config_path, [text])


def load_adapter(folder: str | Path) -> Adapter:
    """Read an adapter folder that Tutti or PEFT wrote.

    Raises ConfigError and WeightsError, before memory is taken, for what does not fit.
    """
    folder = Path(folder)
    config = PromptLearningConfig.from_pretrained(folder)
    path = folder / WEIGHTS_NAME
    if not path.exists():
        raise WeightsError(f"{folder}: there is no {WEIGHTS_NAME}{_found_pickles(folder)}")
    with open_weights(path, MAX_ADAPTER_BYTES) as weights:
        _check(config, weights.entries, str(path))
        found, is_pefts = weights.read(), weights.metadata is None
    heads = {name for name in found if name.startswith(_HEAD_PREFIX)}
    return Adapter(
        config,
        {name: tensor for name, tensor in found.items() if name not in heads},
        {name.removeprefix(_HEAD_PREFIX): found[name] for name in heads},
        is_pefts,
    )


def _tensors_of(config: PromptLearningConfig, module: nn.Module) -> dict[str, Tensor]:
    state = module.state_dict()
    if isinstance(config, MultitaskPromptTuningConfig):
        state[_TABLE] = state.pop("embedding.weight")
        return {name: tensor.cpu() for name, tensor in state.items()}
    device = next(iter(state.values())).device
    indices = torch.arange(config.table_shape[0], device=device)
    with eval_mode(module):
        return {_TABLE: module(indices.unsqueeze(0))[0].cpu()}


def _check(
    config: PromptLearningConfig,
    found: Mapping[str, TensorEntry] | Mapping[str, Tensor],
    where: str,
) -> None:
    """`found`, named as in the file, holds what the config implies, and heads the config names."""
    heads = [name for name in found if name.startswith(_HEAD_PREFIX)]
    head_shapes = {name: tuple(found[name].shape) for name in heads}
    check_tensors(found, adapter_shapes(config) | head_shapes, PROMPT_DTYPES, where)
    task = TaskType(config.task_type) if config.task_type else None
    saved = (*(config.modules_to_save or ()), *(HEADS.get(task, ()) if task else ()))
    for name in heads:
        modules = accumulate(name.split(".")[1:-1], lambda parent, child: f"{parent}.{child}")
        if not any(module.endswith(saved) for module in modules):  # as PEFT compares names
            raise WeightsError(
                f"{where}: {name!r} is in no module that is saved beside the prompt; the config's "
                f"modules_to_save and task_type name {', '.join(dict.fromkeys(saved)) or 'none'}"
            )


def _found_pickles(folder: Path) -> str:
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLES)
    if not pickles:
        return ""
    return (
        f", only {', '.join(pickles)}: a pickle can run code and is never loaded. Where you trust "
        "it, load it with PEFT and save it again: PeftModel.from_pretrained(base, folder)"
        ".save_pretrained(folder) writes safetensors"
    )
