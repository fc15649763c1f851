"""Multitask prompt tuning: one shared table, times a low-rank factor of each task.

Shapes: B rows, V virtual tokens, D token_dim, N tasks, R ranks. State-dict keys, shapes and random
draws are PEFT's (`tuners/multitask_prompt_tuning/model.py`). A source prompt is read from
safetensors alone. Source: 'Multitask Prompt Tuning', arXiv 2303.02861.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from encoders.config import MultitaskPromptTuningConfig, MultitaskPromptTuningInit
from encoders.errors import ConfigError, EncoderError
from encoders.field_checks import checked_table_shape
from encoders.files.weights_file import check_tensors, open_weights
from encoders.modules.prompt_embedding import PromptEmbedding

_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_Init = MultitaskPromptTuningInit


class MultitaskPromptEmbedding(PromptEmbedding):
    """A table [V, D] times, elementwise, each task's `cols` [V, R] @ `rows` [R, D].

    Unlike PEFT's, `inference_mode` needs no source file: the weights are about to be loaded.
    Raises ConfigError or WeightsError where a start cannot be made.
    """

    def __init__(
        self, config: MultitaskPromptTuningConfig, word_embeddings: nn.Module | None = None
    ) -> None:
        super().__init__(config, word_embeddings)
        total_virtual_tokens, self.token_dim = config.table_shape
        self.num_tasks = config.num_tasks
        self.num_ranks = config.num_ranks
        self.num_virtual_tokens = config.required("num_virtual_tokens")
        self.num_transformer_submodules = total_virtual_tokens // self.num_virtual_tokens
        checked_table_shape(self.num_tasks * self.num_ranks, total_virtual_tokens + self.token_dim)
        cols_size = (self.num_tasks, total_virtual_tokens, self.num_ranks)
        rows_size = (self.num_tasks, self.num_ranks, self.token_dim)
        self.prefix_task_cols = nn.Parameter(torch.normal(mean=0.0, std=0.02, size=cols_size))
        self.prefix_task_rows = nn.Parameter(torch.normal(mean=0.0, std=0.02, size=rows_size))
        starts_from_source = config.prompt_tuning_init not in (_Init.TEXT, _Init.RANDOM)
        if starts_from_source and not config.inference_mode:
            self._start_from_source(config)

    def forward(  # type: ignore[override]  # PEFT's signature
        self, indices: Tensor, task_ids: Tensor | None
    ) -> Tensor:
        """Virtual tokens [B, V, D] of table rows `indices` [B, V] for the tasks `task_ids` [B].

        Raises EncoderError unless every task id is from 0 to N-1.
        """
        if task_ids is None:
            raise EncoderError("task_ids cannot be None")
        if task_ids.dim() != 1 or task_ids.dtype not in (torch.int32, torch.int64):
            raise EncoderError(
                f"task_ids is {task_ids.dtype} of shape {tuple(task_ids.shape)}; "
                "it must be int64, one for each row"
            )
        if ((task_ids < 0) | (task_ids >= self.num_tasks)).any():
            raise EncoderError(
                f"task_ids are {task_ids.tolist()}; allowed are 0 to {self.num_tasks - 1}"
            )
        task_cols = self.prefix_task_cols.index_select(0, task_ids)
        task_rows = self.prefix_task_rows.index_select(0, task_ids)
        return super().forward(indices) * torch.matmul(task_cols, task_rows)

    def virtual_tokens(self, task_id: int = 0) -> Tensor:
        """All virtual tokens [V, D] of one task, with gradient. EncoderError as in `forward`."""
        device = self.embedding.weight.device
        indices = torch.arange(self.embedding.num_embeddings, device=device)
        return self.forward(indices.unsqueeze(0), torch.tensor([task_id], device=device))[0]

    def _start_from_source(self, config: MultitaskPromptTuningConfig) -> None:
        if self.num_tasks != 1 and config.prompt_tuning_init != _Init.ONLY_SOURCE_SHARED:
            raise ConfigError(
                f"num_tasks is {self.num_tasks}; with prompt_tuning_init="
                f"{config.prompt_tuning_init} it must be 1: a source gives one task's factors"
            )
        starts = {"prompt_embeddings": self.embedding.weight}
        if config.prompt_tuning_init != _Init.ONLY_SOURCE_SHARED:
            starts["prefix_task_cols"] = self.prefix_task_cols
            starts["prefix_task_rows"] = self.prefix_task_rows
        tensors = _read_source(_source_path(config), starts)
        for name, parameter in starts.items():
            source = tensors[name]
            if source.dim() == 3:
                source = _task_factor(source, config)
            with torch.no_grad():
                parameter.copy_(source)


def _source_path(config: MultitaskPromptTuningConfig) -> Path:
    path = config.prompt_tuning_init_state_dict_path
    if path is None:
        raise ConfigError(
            "prompt_tuning_init_state_dict_path needs to be specified with "
            f"{config.prompt_tuning_init} init method"
        )
    if not path.endswith(".safetensors"):
        raise ConfigError(
            f"prompt_tuning_init_state_dict_path is {path!r}; only a .safetensors file is read, "
            "since a pickle can run code: save the source prompt as safetensors"
        )
    return Path(path)


def _read_source(path: Path, starts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The file's tensors of the names and shapes of `starts`, but for any number of tasks."""
    with open_weights(path) as file:
        entries = {name: entry for name, entry in file.entries.items() if name in starts}
        shapes = {name: tuple(start.shape) for name, start in starts.items()}
        for name, entry in entries.items():
            if starts[name].dim() == 3:  # [N, ...]
                shapes[name] = (max((1, *entry.shape[:1])), *shapes[name][1:])
        check_tensors(entries, shapes, _FLOATS, str(path))
        return file.read()


def _task_factor(factors: Tensor, config: MultitaskPromptTuningConfig) -> Tensor:
    """[N, ...] -> [1, ...]: the mean over the source's tasks, or one of them."""
    if config.prompt_tuning_init == _Init.AVERAGE_SOURCE_TASKS:
        return factors.mean(0, keepdim=True)
    task = config.prompt_tuning_init_task
    if task is None or task >= len(factors):
        raise ConfigError(
            f"prompt_tuning_init_task is {task}; the source has the tasks 0 to {len(factors) - 1}"
        )
    return factors[task].unsqueeze(0)
