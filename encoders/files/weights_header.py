"""A safetensors header, checked against the size of its file before any tensor takes memory.

Every byte of the file's body belongs to exactly one tensor, and each tensor has a known dtype and
the bytes its shape takes.
"""

import io
import math
import reprlib
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from encoders.files.untrusted_file import parse_json

MAX_HEADER_BYTES = 1 << 24
METADATA = "__metadata__"
OWN_METADATA = "tutti"  # one key alone: safetensors writes several in no fixed order
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
}
#: What a prompt's own numbers may be.
PROMPT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_MAX_DIMENSIONS = 16
_FOREIGN = {
    b"PK\x03\x04": "a zip, as torch.save writes",
    b"\x80": "a pickle",
    b"\x93NUMPY": "an .npy file",
}


@dataclass(frozen=True)
class TensorEntry:
    """One tensor; its bytes are those from `start` to `stop` (exclusive) of the file's body."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True)
class WeightsHeader:
    """The tensors by name, the JSON value Tutti wrote beside them (or None), and where the file's
    body begins."""

    entries: Mapping[str, TensorEntry]
    metadata: Any
    body_start: int

    @classmethod
    def read(cls, file: io.BufferedIOBase, size: int) -> "WeightsHeader":
        """The header of a file of `size` bytes. Raises ValueError or RecursionError."""
        values, body_start = _read_json(file, size)
        metadata = _own_metadata(values.pop(METADATA, {}))
        entries = {name: _entry(name, value) for name, value in values.items()}
        _check_tiling(entries.values(), size - body_start)
        return cls(entries, metadata, body_start)


def _read_json(file: io.BufferedIOBase, size: int) -> tuple[dict[str, Any], int]:
    start = file.read(8)
    if len(start) < 8:
        raise ValueError(f"it has {size} bytes; its header's length alone takes 8")
    (length,) = struct.unpack("<Q", start)
    if length > min(MAX_HEADER_BYTES, size - 8):
        for magic, kind in _FOREIGN.items():
            if start.startswith(magic):
                raise ValueError(f"it is {kind}")
        raise ValueError(
            f"its header would be {length} bytes long, in a file of {size} bytes; a header has at "
            f"most {MAX_HEADER_BYTES}"
        )
    header = parse_json(file.read(length))
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")
    return header, 8 + length


def _own_metadata(metadata: Any) -> Any:
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise ValueError("its metadata is not text by name")
    return parse_json(metadata.get(OWN_METADATA, "null").encode())


def _entry(name: str, value: Any) -> TensorEntry:
    match value:
        case {"dtype": str(kind), "shape": list(shape), "data_offsets": [start, stop], **rest}:
            numbers = [*shape, start, stop]
            if not rest and all(type(number) is int and number >= 0 for number in numbers):
                return _checked_entry(name, kind, tuple(shape), start, stop)
    raise ValueError(f"the entry of {reprlib.repr(name)} is malformed")


def _checked_entry(
    name: str, kind: str, shape: tuple[int, ...], start: int, stop: int
) -> TensorEntry:
    if kind not in DTYPES:
        raise ValueError(
            f"{reprlib.repr(name)} has the dtype {reprlib.repr(kind)}; "
            f"allowed are {', '.join(DTYPES)}"
        )
    found = f"{reprlib.repr(name)} has the shape {reprlib.repr(list(shape))}"
    if len(shape) > _MAX_DIMENSIONS or math.prod(max(1, size) for size in shape) >= 1 << 60:
        raise ValueError(f"{found}, which no tensor can have")
    num_bytes = math.prod(shape) * DTYPES[kind].itemsize
    if stop - start != num_bytes:
        raise ValueError(f"{found}, which takes {num_bytes} bytes, but it has {stop - start}")
    return TensorEntry(DTYPES[kind], shape, start, stop)


def _check_tiling(entries: Iterable[TensorEntry], num_bytes: int) -> None:
    end = 0
    for entry in sorted(entries, key=lambda entry: (entry.start, entry.stop)):
        if entry.start != end:
            raise ValueError(f"its tensors overlap or leave a hole at byte {end} of its body")
        end = entry.stop
    if end != num_bytes:
        raise ValueError(f"its tensors take {end} bytes, but its body has {num_bytes}")
