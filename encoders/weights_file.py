"""Tensors to safetensors bytes and back, checked: only the keys, shapes and dtypes expected.

safetensors is the only format read; a pickle is refused by its header, before memory is taken.
"""

import json
import struct
from collections.abc import Mapping

import torch
from safetensors.torch import load as _load
from safetensors.torch import save as _save
from torch import Tensor

from encoders.errors import WeightsError

MAX_HEADER_BYTES = 1 << 24


def dump_tensors(tensors: Mapping[str, Tensor]) -> bytes:
    """Deterministic safetensors bytes: equal tensors give equal bytes."""
    return _save({name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)})


def load_tensors(data: bytes, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Tensors of `data`, which must hold exactly `shapes`, finite float32; or WeightsError."""
    found = _header_shapes(data)
    if found != {name: ("F32", tuple(shape)) for name, shape in shapes.items()}:
        expected = {name: tuple(shape) for name, shape in shapes.items()}
        raise WeightsError(f"the weights hold {found}, expected float32 {expected}")
    try:
        tensors = _load(data)
    except Exception as error:  # safetensors raises its own bare Exception type
        raise WeightsError(f"the weights file is damaged: {error}") from error
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise WeightsError(f"the weights {name!r} hold NaN or infinity")
    return tensors


def _header_shapes(data: bytes) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name -> (dtype, shape), from the header alone."""
    try:
        (length,) = struct.unpack("<Q", data[:8])
        if length > min(MAX_HEADER_BYTES, len(data) - 8):
            raise ValueError("its header is longer than the file")
        header = json.loads(data[8 : 8 + length])
        header.pop("__metadata__", None)
        return {name: (str(e["dtype"]), tuple(e["shape"])) for name, e in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, struct.error) as error:
        raise WeightsError(f"not a safetensors file: {error}") from error
