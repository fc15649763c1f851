"""Each row of a batch through its own prompt's head, in one forward of an unmodified base.

A hook replaces what the base's head gives. Shapes: B rows, C labels.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from encoders.prompted.prompt_rows import PromptRows


@contextmanager
def routed_heads(base: Any, rows: PromptRows) -> Iterator[None]:
    """While open, the base's heads give each row what its prompt's own head gives.

    Rows of fewer labels than the most in the batch end in -inf.
    """
    with ExitStack() as stack:
        for name in {name for prompt in rows.prompts for name in prompt.heads}:
            handle = base.get_submodule(name).register_forward_hook(
                _Route(name, rows), with_kwargs=True
            )
            stack.callback(handle.remove)
        yield


class _Route:
    """A forward hook of the base's module `name`."""

    def __init__(self, name: str, rows: PromptRows) -> None:
        self._name, self._rows = name, rows

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> Tensor:
        states = args[0]
        times = len(states) // len(self._rows.prompts)  # generate() repeats rows
        repeats = torch.arange(times, device=states.device)
        outputs, order = [], []
        for prompt, index in self._rows.by_prompt():
            index = (index.to(states.device).unsqueeze(1) * times + repeats).flatten()
            order.append(index)
            if self._name in prompt.heads:
                own = states.index_select(0, index)
                outputs.append(prompt.heads[self._name](own, *args[1:], **kwargs))
            else:
                outputs.append(output.index_select(0, index))
        widest = max(each.shape[-1] for each in outputs)
        together = torch.cat([_widen(each, widest) for each in outputs])
        return together.index_select(0, torch.cat(order).argsort())


def _widen(logits: Tensor, width: int) -> Tensor:
    return nn.functional.pad(logits, (0, width - logits.shape[-1]), value=-torch.inf)
