"""One named prompt on a base: its module, its heads, and how its table is divided.

Shapes: N table rows, D token_dim, G key heads of the base, d their size.
"""

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from torch import Tensor, nn

from encoders.config import PrefixTuningConfig, PromptLearningConfig, TaskType
from encoders.errors import PromptError
from encoders.modules.eval_mode import eval_mode
from encoders.modules.task_head import copy_heads
from encoders.prompted.base_traits import BaseTraits


class AttachedPrompt(nn.Module):
    """A prompt that rows of a batch can ask for, with the heads trained beside it.

    Of an encoder-decoder, `num_encoder_tokens` rows of the table stand before the encoder's text
    and the next `num_decoder_tokens` before the decoder's; a prefix of `num_prefix` slots stands
    before the decoder's. With `peft_layout` the table is used as PEFT 0.21.2 uses it there: see
    `PromptedModel.add_prompt`.
    """

    def __init__(
        self,
        name: str,
        config: Any,
        encoder: nn.Module,
        base: Any,
        traits: BaseTraits,
        peft_layout: bool = False,
    ) -> None:
        super().__init__()
        self.name, self.config, self.peft_layout = name, config, peft_layout
        self.encoder, self.heads = encoder, nn.ModuleDict()
        self.task_type: TaskType | None = None
        self.num_labels: int | None = None
        self.problem_type: str | None = None
        self.num_encoder_tokens = self.num_decoder_tokens = self.num_prefix = 0
        self.num_tasks: int = getattr(encoder, "num_tasks", 0)
        self._pair_of_layer: list[int] | None = None
        if hasattr(encoder, "prefix"):
            self._divide_prefix(base, traits, peft_layout)
        else:
            self._divide_table(base, traits, peft_layout)

    def add_heads(
        self,
        base: Any,
        task_type: TaskType | None,
        num_labels: int | None = None,
        problem_type: str | None = None,
    ) -> None:
        """Take copies of the base's heads for the task. Raises PromptError."""
        saved = getattr(self.config, "modules_to_save", None)
        self.heads = copy_heads(base, task_type, saved, num_labels)
        self.task_type = task_type
        if task_type not in (TaskType.SEQ_CLS, TaskType.TOKEN_CLS):
            return
        self.num_labels = num_labels or base.config.num_labels
        if self.num_labels == base.config.num_labels:
            problem_type = problem_type or base.config.problem_type
        self.problem_type = problem_type

    def _divide_table(self, base: Any, traits: BaseTraits, peft_layout: bool) -> None:
        table = self._probe("virtual_tokens")
        token_dim = base.get_input_embeddings().embedding_dim
        if table.shape[-1] != token_dim:
            raise PromptError(
                f"the prompt {self.name!r} has virtual tokens of size {table.shape[-1]}, but the "
                f"base embeds in {token_dim}: it is a prompt of another base"
            )
        submodules = getattr(self.config, "num_transformer_submodules", None) or 1
        self.num_encoder_tokens = len(table)
        if not traits.is_encoder_decoder or submodules == 1:
            return
        self.num_encoder_tokens //= 2
        if self.num_tasks or not peft_layout:  # PEFT never uses the others' second half
            self.num_decoder_tokens = self.num_encoder_tokens

    def _divide_prefix(self, base: Any, traits: BaseTraits, peft_layout: bool) -> None:
        prefix = self._probe("prefix")
        sizes = PrefixTuningConfig(num_virtual_tokens=len(prefix)).completed(base.config)
        num_layers = sizes.required("num_layers")
        if isinstance(self.config, PrefixTuningConfig):
            sizes = self.config
        width, heads = sizes.required_token_dim, sizes.required("num_attention_heads")
        if prefix.shape[-1] != num_layers * 2 * width or width % heads:
            raise PromptError(
                f"the prefix {self.name!r} has {prefix.shape[-1]} numbers a virtual token, but the "
                f"base needs 2 x {num_layers} layers x {width}: it is a prefix of another base"
            )
        self.num_prefix = len(prefix)
        self._prefix_shape = (num_layers, 2, heads, width // heads)
        submodules = getattr(self.config, "num_transformer_submodules", None) or 1
        if traits.is_encoder_decoder and peft_layout and submodules == 2:
            self._pair_of_layer = [2 * layer % num_layers for layer in range(num_layers)]

    def _probe(self, method: str) -> Tensor:
        """The module's table, to look at its shape. Raises PromptError where it has none."""
        table = None
        if hasattr(self.encoder, method):
            with eval_mode(self.encoder), suppress(TypeError):  # one that wants arguments
                table = self._emit(method)
        if not isinstance(table, Tensor) or table.dim() != 2 or not len(table):
            raise PromptError(
                f"the prompt {self.name!r} is a {type(self.encoder).__name__}, whose {method}() "
                "gives no table of virtual tokens"
            )
        return table

    def table(self, task_id: int | None) -> Tensor:
        """All virtual tokens [N, D], or the prefix [N, layers, 2, G, d], with gradient."""
        if self.num_prefix:
            prefix: Tensor = self._emit("prefix")
            prefix = prefix.view(len(prefix), *self._prefix_shape)
            return prefix if self._pair_of_layer is None else prefix[:, self._pair_of_layer]
        return self._emit("virtual_tokens", *(() if task_id is None else (task_id,)))

    def _emit(self, method: str, *arguments: int) -> Tensor:
        table: Tensor = getattr(self.encoder, method)(*arguments)
        return table

    def checked_task_id(self, task_id: int | None) -> int | None:
        """The task a row asks for; None where the prompt has no tasks. Raises PromptError."""
        if not self.num_tasks:
            return None
        if task_id is None or not 0 <= task_id < self.num_tasks:
            raise PromptError(
                f"the prompt {self.name!r} has the tasks 0 to {self.num_tasks - 1}, but a row asks "
                f"for {task_id}: give task_ids, one for each row"
            )
        return task_id


class NamedPrompts(nn.Module):
    """Prompts by any names, which are data: never attributes, module paths or file names."""

    def __setitem__(self, name: str, prompt: AttachedPrompt) -> None:
        self._modules[_key(name)] = prompt

    def __getitem__(self, name: str) -> AttachedPrompt:
        """Raises PromptError, with the known names, for an unknown one."""
        prompt = self._modules.get(_key(name)) if isinstance(name, str) else None
        if not isinstance(prompt, AttachedPrompt):
            known = ", ".join(repr(each) for each in self) or "none"
            raise PromptError(f"there is no prompt {name!r}; attached are: {known}")
        return prompt

    def __delitem__(self, name: str) -> None:
        del self._modules[_key(self[name].name)]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and _key(name) in self._modules

    def __iter__(self) -> Iterator[str]:
        return (each.name for each in self._modules.values() if isinstance(each, AttachedPrompt))

    def __len__(self) -> int:
        return len(self._modules)


def _key(name: str) -> str:
    """The name in a state dict, where a dot would divide it."""
    return name.replace("%", "%25").replace(".", "%2E")


def checked_task_type(config: Any, traits: BaseTraits) -> TaskType | None:
    """The task of a prompt on a base. Raises PromptError where they are for different tasks."""
    task_type = config.task_type if isinstance(config, PromptLearningConfig) else None
    if None not in (task_type, traits.task_type) and task_type != traits.task_type:
        raise PromptError(
            f"the prompt is for {task_type}, but the base is a model for {traits.task_type}: load "
            "the base with the head of the prompt's task"
        )
    return traits.task_type or (TaskType(task_type) if task_type else None)
