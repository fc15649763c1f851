"""Tensors [T, D] under any names, which are data: never attributes, module paths or file names."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from encoders.errors import EncoderError


class NamedTables(nn.Module):
    """Buffers by name: they move with the module, and its state dict holds them as they are named.

    Loading a state dict replaces all of them by the state dict's.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def add(self, name: str, table: Tensor) -> None:
        """Copy a table [T, D], in place of one of the same name.

        Raises EncoderError for a name that is not printable or empty, and for any other tensor.
        """
        if not isinstance(name, str) or not name or not name.isprintable():
            raise EncoderError(f"the name {name!r} is not allowed; it must be printable text")
        if table.dim() != 2 or table.shape[1] != self.width or not len(table):
            raise EncoderError(
                f"the table of {name!r} has the shape {tuple(table.shape)}, expected "
                f"(at least 1, {self.width})"
            )
        if not table.is_floating_point() or not table.isfinite().all():
            raise EncoderError(f"the table of {name!r} must hold finite floating-point numbers")
        self._buffers[name] = table.detach().clone()

    def __getitem__(self, name: str) -> Tensor:
        table = self._buffers[name]
        assert table is not None
        return table

    def __contains__(self, name: object) -> bool:
        return name in self._buffers

    def __iter__(self) -> Iterator[str]:
        return iter(self._buffers)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *_: object) -> None:
        self._buffers.clear()
        for key, table in state_dict.items():
            if key.startswith(prefix):
                self.add(key.removeprefix(prefix), table)
