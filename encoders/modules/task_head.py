"""Heads trained beside a prompt: copies of the base's, which stays as it is."""

import copy
from collections.abc import Sequence
from typing import Any

from torch import nn

from encoders.config import TaskType
from encoders.errors import PromptError

#: Names of the heads that PEFT trains with a prompt, as endings of the names of the base's modules.
HEADS = {
    TaskType.SEQ_CLS: ("classifier", "score"),
    TaskType.TOKEN_CLS: ("classifier", "score"),
    TaskType.QUESTION_ANS: ("qa_outputs",),
}


def copy_heads(
    base: Any,
    task_type: TaskType | None,
    modules_to_save: Sequence[str] | None = None,
    num_labels: int | None = None,
) -> nn.ModuleDict:
    """Trainable copies of the base's heads for a task, and of its modules in `modules_to_save`.

    With another `num_labels` than the base's, the head's last layer is a new one, drawn as the base
    draws its own. Raises PromptError where there is no such module, and for labels without a head.
    """
    saved = tuple(modules_to_save or ())
    children = dict(base.named_children())
    for ending in saved:
        if not any(name.endswith(ending) for name in children):
            raise PromptError(
                f"modules_to_save names {ending!r}, but the base's are {', '.join(children)}"
            )
    own = HEADS.get(task_type, ()) if task_type else ()
    if own and not any(name in children for name in own):
        raise PromptError(
            f"{type(base).__name__} has no head for {task_type}: load the base with one"
        )
    names = [name for name in children if name.endswith((*own, *saved))]
    if any(each.numel() == 0 for name in names for each in children[name].parameters()):
        raise PromptError(f"the base is sharded: attach prompts with {names} before it is")
    heads = nn.ModuleDict({name: copy.deepcopy(children[name]) for name in names})
    heads.requires_grad_(True)
    if num_labels is not None:
        _resize(heads, base, task_type, num_labels)
    return heads


def _resize(heads: nn.ModuleDict, base: Any, task_type: TaskType | None, num_labels: int) -> None:
    if task_type not in (TaskType.SEQ_CLS, TaskType.TOKEN_CLS) or num_labels < 1:
        raise PromptError(
            f"num_labels is {num_labels} for a prompt for {task_type}; it is for SEQ_CLS and "
            "TOKEN_CLS, and at least 1"
        )
    name = next(name for name in HEADS[task_type] if name in heads)
    path, last = [
        (f"{name}.{inner}".rstrip("."), module)
        for inner, module in heads[name].named_modules()
        if isinstance(module, nn.Linear)
    ][-1]
    if last.out_features == num_labels:
        return
    new = nn.Linear(last.in_features, num_labels, last.bias is not None)
    base._init_weights(new)  # as transformers draws a head
    parent, _, attribute = path.rpartition(".")
    setattr(heads.get_submodule(parent), attribute, new.to(last.weight))
