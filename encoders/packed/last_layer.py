"""The last decoder layer on the rows whose logits are wanted, and on no others.

What the last layer makes of a position reaches that position's logits alone; only its keys and
values are looked at by others. So its queries, its attention's output projection and its MLP, which
work row by row, are given the wanted rows and leave zeros elsewhere. A base whose layout is not
known is left as it is. The model's modules are hooked, not changed: ZeRO-3 modules serve as well.

Shapes: N positions of one packed sequence, K wanted rows.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from encoders.errors import PackingError

_LAYERS = ("layers", "h")  # Llama and its kin, GPT-NeoX; GPT-2
_ATTENTION = ("self_attn", "attn", "attention")
_ROW_WISE_IN_ATTENTION = ("q_proj", "o_proj", "c_proj", "dense")


def row_wise_modules(model: nn.Module) -> list[nn.Module]:
    """The row-wise modules of the last decoder layer; none where the layout is not known."""
    decoder = getattr(model, "base_model", model)
    layers = _child(decoder, _LAYERS)
    if not isinstance(layers, nn.ModuleList) or not len(layers):
        return []
    last = layers[-1]
    attention = _child(last, _ATTENTION)
    found = [getattr(attention, name, None) for name in _ROW_WISE_IN_ATTENTION]
    found.append(getattr(last, "mlp", None))
    return [module for module in found if isinstance(module, nn.Module)]


def _child(module: nn.Module, names: Sequence[str]) -> Any:
    return next((child for name in names if (child := getattr(module, name, None))), None)


@contextmanager
def on_rows_only(modules: Sequence[nn.Module], rows: Tensor, num_positions: int) -> Iterator[None]:
    """Within the context, `modules` see `rows` [K], each at most once, of their input [1, N, *];
    what they return is zero at the others."""

    def select(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0].index_select(1, rows), *args[1:])

    def restore(module: nn.Module, args: object, output: object) -> Tensor:
        if not isinstance(output, Tensor):
            raise PackingError(f"this base's {type(module).__name__} returns more than a tensor")
        whole = output.new_zeros(1, num_positions, output.shape[-1])
        return whole.index_copy(1, rows, output)

    with ExitStack() as hooks:
        for module in modules:
            hooks.callback(module.register_forward_pre_hook(select).remove)
            hooks.callback(module.register_forward_hook(restore).remove)
        yield
