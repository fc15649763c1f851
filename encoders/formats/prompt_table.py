"""Prompts stacked in one `.npy` array, as TensorRT-LLM's `prompt_table` takes it, and their ids.

Beside `name.npy` [tasks, max V, D] stands `name.ids.json`, written last: each prompt's id (its row)
and number of virtual tokens, and the array's sha256. Shorter prompts are padded with zeros.
bfloat16, which numpy lacks, is written as TensorRT-LLM does: two-byte voids. Never a pickle.
"""

import hashlib
import io
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from encoders.errors import WeightsError
from encoders.files.durable_file import write_durably
from encoders.files.untrusted_file import open_untrusted, read_json
from encoders.files.weights_file import check_finite

MAX_TABLE_BYTES = 1 << 36
MAX_IDS_BYTES = 1 << 24
#: numpy's names of the dtypes written.
_DESCRIPTIONS = {torch.float32: "<f4", torch.float16: "<f2", torch.bfloat16: "|V2"}
#: The one form of header that numpy writes for such an array; numpy's own reader evaluates it.
_HEADER = re.compile(
    rb"\{'descr': '(<f4|<f2|\|V2)', 'fortran_order': False, "
    rb"'shape': \((\d{1,15}), (\d{1,15}), (\d{1,15})\), \} *\n"
)


@dataclass(frozen=True)
class PromptTable:
    """`table` [tasks, max V, D], and each prompt's id and number of virtual tokens by name."""

    table: Tensor
    ids: Mapping[str, int]
    num_virtual_tokens: Mapping[str, int]

    def virtual_tokens(self, name: str) -> Tensor:
        """One prompt's virtual tokens [V, D], without padding. Raises WeightsError for no prompt of
        that name."""
        if name not in self.ids:
            raise WeightsError(f"the table has no prompt {name!r}; it has {', '.join(self.ids)}")
        return self.table[self.ids[name], : self.num_virtual_tokens[name]]


def export_prompt_table(
    path: str | Path, prompts: Mapping[str, Tensor], dtype: torch.dtype = torch.float32
) -> None:
    """Write prompts [V, D], of any lengths but one width, as `path` (`.npy`) and its id map.

    Ids count up in the order given. Raises WeightsError for what cannot be stacked, and for numbers
    that are not finite in `dtype` (float32, float16 or bfloat16).
    """
    path = _npy_path(path)
    if dtype not in _DESCRIPTIONS:
        raise WeightsError(f"{dtype} is no dtype of a prompt table; allowed are {[*_DESCRIPTIONS]}")
    table = _stack(prompts, dtype)
    header = io.BytesIO()
    array = {"descr": _DESCRIPTIONS[dtype], "fortran_order": False, "shape": tuple(table.shape)}
    np.lib.format.write_array_header_1_0(header, array)
    chunks: list[bytes | memoryview] = [header.getvalue(), table.view(torch.uint8).numpy().data]
    write_durably(path, chunks)
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    ids = {
        "sha256": digest.hexdigest(),
        "prompts": {
            name: {"id": i, "num_virtual_tokens": len(prompt)}
            for i, (name, prompt) in enumerate(prompts.items())
        },
    }
    write_durably(_ids_path(path), [json.dumps(ids, indent=2).encode()])


def load_prompt_table(path: str | Path) -> PromptTable:
    """Read what `export_prompt_table` wrote. Raises WeightsError, before memory is taken."""
    path = _npy_path(path)
    ids = read_json(_ids_path(path), MAX_IDS_BYTES)
    if not isinstance(ids, dict) or not isinstance(ids.get("sha256"), str):
        raise WeightsError(f"{_ids_path(path)}: not the id map of a prompt table")
    with open_untrusted(path, MAX_TABLE_BYTES, ids["sha256"]) as (file, size):
        dtype, shape = _read_header(file, size, path)
        sizes = _num_virtual_tokens(ids.get("prompts"), shape, _ids_path(path))
        table = torch.empty(shape, dtype=dtype)
        if file.readinto(table.view(torch.uint8).numpy().data) != table.nbytes:
            raise WeightsError(f"{path}: it was cut short while it was read")
    check_finite({"table": table}, str(path))
    return PromptTable(table, {name: i for i, name in enumerate(sizes)}, sizes)


def _stack(prompts: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
    shapes = {name: tuple(prompt.shape) for name, prompt in prompts.items()}
    widths = {shape[-1] for shape in shapes.values() if len(shape) == 2 and 0 not in shape}
    if len(widths) != 1 or any(len(shape) != 2 or 0 in shape for shape in shapes.values()):
        raise WeightsError(f"prompts [V, D] of one width D are needed, not {shapes}")
    longest = max(length for length, _ in shapes.values())
    table = torch.zeros(len(prompts), longest, widths.pop(), dtype=dtype)
    for row, prompt in zip(table, prompts.values(), strict=True):
        row[: len(prompt)] = prompt.detach()
    check_finite(dict(zip(prompts, table, strict=True)), f"as {dtype}")
    return table


def _read_header(
    file: io.BufferedReader, size: int, path: Path
) -> tuple[torch.dtype, tuple[int, ...]]:
    start = file.read(10)
    length = int.from_bytes(start[8:], "little")
    header = _HEADER.fullmatch(file.read(length)) if start[:8] == b"\x93NUMPY\1\0" else None
    if header is None:
        raise WeightsError(
            f"{path}: not an .npy array (version 1.0) of float32, float16 or bfloat16 numbers with "
            "three dimensions, in C order"
        )
    dtype = next(d for d, text in _DESCRIPTIONS.items() if text.encode() == header[1])
    shape = tuple(int(header[i]) for i in (2, 3, 4))
    num_bytes = math.prod(shape) * dtype.itemsize
    if 0 in shape or num_bytes != size - 10 - length:
        raise WeightsError(
            f"{path}: its shape {shape} takes {num_bytes} bytes, but it holds {size - 10 - length}"
        )
    return dtype, shape


def _num_virtual_tokens(prompts: Any, shape: tuple[int, ...], path: Path) -> dict[str, int]:
    """Each prompt's length by name, in the order of their ids."""
    sizes: dict[str, int] = {}
    for name, entry in prompts.items() if isinstance(prompts, dict) else ():
        match entry:
            case {"id": int(i), "num_virtual_tokens": int(n)}:
                if i == len(sizes) and 1 <= n <= shape[1]:
                    sizes[name] = int(n)
    if len(sizes) != shape[0]:
        raise WeightsError(
            f"{path}: it must give each of the table's {shape[0]} prompts, in order, its id and a "
            f"num_virtual_tokens from 1 to {shape[1]}"
        )
    return sizes


def _npy_path(path: str | Path) -> Path:
    if Path(path).suffix != ".npy":
        raise WeightsError(f"{path}: a prompt table's name ends in .npy")
    return Path(path)


def _ids_path(path: Path) -> Path:
    return path.with_suffix(".ids.json")
