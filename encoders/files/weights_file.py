"""Tensors to safetensors bytes and back, checked; the only reader of weights.

The caller says which names, shapes and dtypes it expects before any tensor takes memory. A pickle
is refused, never run; so is any number that is not finite.
"""

import io
import json
import reprlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as _save
from torch import Tensor

from encoders.errors import WeightsError
from encoders.files.untrusted_file import open_untrusted
from encoders.files.weights_header import DTYPES, METADATA, OWN_METADATA, TensorEntry, WeightsHeader

MAX_WEIGHTS_BYTES = 1 << 36


class WeightsFile:
    """An open safetensors file of `size` bytes whose header is checked.

    `entries` and `metadata` are the header's. Raises WeightsError, which opens with `name`.
    """

    def __init__(self, file: io.BufferedIOBase, size: int, name: str) -> None:
        self.name = name
        self._file = file
        try:
            header = WeightsHeader.read(file, size)
        except (ValueError, RecursionError) as error:
            raise WeightsError(f"{name}: not a safetensors file: {error}") from error
        self.entries = header.entries
        self.metadata = header.metadata
        self._body_start = header.body_start

    def expect(
        self, shapes: Mapping[str, tuple[int, ...]], dtypes: Collection[torch.dtype]
    ) -> None:
        """Raise WeightsError unless the file holds exactly `shapes`, each in one of `dtypes`."""
        check_tensors(self.entries, shapes, dtypes, self.name)

    def read(self) -> dict[str, Tensor]:
        """All tensors, bit for bit. Raises WeightsError for numbers that are not finite."""
        tensors = {key: self._read(key, entry) for key, entry in self.entries.items()}
        check_finite(tensors, self.name)
        return tensors

    def _read(self, key: str, entry: TensorEntry) -> Tensor:
        tensor = torch.empty(entry.shape, dtype=entry.dtype)
        target = tensor.reshape(-1).view(torch.uint8).numpy().data
        self._file.seek(self._body_start + entry.start)
        if self._file.readinto(target) != len(target):
            raise WeightsError(f"{self.name}: {key!r} was cut short while it was read")
        return tensor


@contextmanager
def open_weights(
    path: Path, max_bytes: int = MAX_WEIGHTS_BYTES, sha256: str | None = None
) -> Iterator[WeightsFile]:
    """A safetensors file, its header checked. Raises WeightsError, also for another digest."""
    with open_untrusted(path, max_bytes, sha256) as (file, size):
        yield WeightsFile(file, size, str(path))


def load_tensors(data: bytes, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Tensors of `data`, which must hold exactly `shapes`, finite float32; or WeightsError."""
    weights = WeightsFile(io.BytesIO(data), len(data), "the weights")
    weights.expect(shapes, (torch.float32,))
    return weights.read()


def dump_tensors(tensors: Mapping[str, Tensor], metadata: Any = None) -> bytes:
    """Deterministic safetensors bytes: equal tensors, and equal JSON `metadata`, give equal bytes.

    Raises WeightsError for a dtype or a name that would not be read back.
    """
    dense: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name in sorted(tensors):
        if name == METADATA:
            raise WeightsError(f"{name!r} is no name of a tensor")
        tensor = tensors[name].detach().cpu().contiguous()
        if tensor.dtype not in DTYPES.values():
            allowed = ", ".join(map(_kind, DTYPES.values()))
            raise WeightsError(f"{name!r} is {_kind(tensor.dtype)}; allowed are {allowed}")
        storage = tensor.untyped_storage().data_ptr()
        dense[name] = tensor.clone() if storage in storages else tensor  # safetensors shares none
        storages.add(storage)
    if metadata is None:
        return _save(dense)
    return _save(dense, {OWN_METADATA: json.dumps(metadata, sort_keys=True)})


def check_tensors(
    found: Mapping[str, TensorEntry] | Mapping[str, Tensor],
    shapes: Mapping[str, tuple[int, ...]],
    dtypes: Collection[torch.dtype],
    where: str,
) -> None:
    """Raise WeightsError unless `found` has exactly `shapes`, each in one of `dtypes`."""
    missing, unknown = shapes.keys() - found.keys(), found.keys() - shapes.keys()
    if missing:
        raise WeightsError(f"{where}: it lacks {_some(missing)}; it holds {_some(found)}")
    if unknown:
        raise WeightsError(
            f"{where}: it holds {_some(unknown)}; expected is nothing but {_some(shapes)}"
        )
    for name, shape in shapes.items():
        dtype, size = found[name].dtype, tuple(found[name].shape)
        if size != tuple(shape) or dtype not in dtypes:
            raise WeightsError(
                f"{where}: {name!r} is {_kind(dtype)} {size}, "
                f"expected {' or '.join(map(_kind, dtypes))} {tuple(shape)}"
            )


def check_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    """Raise WeightsError where a floating-point tensor holds NaN or infinity."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise WeightsError(f"{where}: {name!r} holds NaN or infinity")


def _some(names: Collection[str]) -> str:
    """The first few names."""
    shown = ", ".join(reprlib.repr(name) for name in sorted(names)[:6])
    return f"{shown or 'no tensor'}{' and others' if len(names) > 6 else ''}"


def _kind(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
