"""Files as somebody might make them who wants a reader to crash, to run code or to eat memory."""

import io
import json
import pickle
import struct
import zipfile
from typing import Any

import pytest
import torch


def file_of(header: object, body: bytes = b"") -> bytes:
    """A safetensors file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def entry(
    shape: Any = (2, 3), offsets: Any = (0, 24), dtype: Any = "F32", name: str = "a"
) -> dict[str, Any]:
    return {name: {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


def pickle_bomb(protocol: int) -> bytes:
    """A pickle that fails the test when it is loaded."""

    class Bomb:
        def __reduce__(self) -> object:
            return (pytest.fail, ("the pickle was run",))

    return pickle.dumps(Bomb(), protocol)


def torch_save_bytes() -> bytes:
    buffer = io.BytesIO()
    torch.save({"prompt_embeddings": torch.ones(2, 3)}, buffer)
    return buffer.getvalue()


def zip_bytes() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("../../a", b"x")
    return buffer.getvalue()


#: What no reader takes for a safetensors file: bytes, and the reason given.
NO_SAFETENSORS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "it has 0 bytes"),
    "seven zeros": (b"\0" * 7, "it has 7 bytes"),
    "eight zeros": (b"\0" * 8, "Expecting value"),
    "header of 2**64-1 bytes": (struct.pack("<Q", 2**64 - 1) + b"{}", "18446744073709551615 bytes"),
    "header of a terabyte": (struct.pack("<Q", 2**40) + b"{}", "1099511627776 bytes long"),
    "header one byte longer than the file": (struct.pack("<Q", 3) + b"{}", "3 bytes long"),
    "half a header": (file_of(b"{"), "Expecting property name"),
    "not UTF-8": (file_of(b"\xff\xfe"), "codec can't decode"),
    "null": (file_of(b"null"), "no JSON object"),
    "a list": (file_of(b"[]"), "no JSON object"),
    "NaN": (file_of(b'{"a": NaN}'), "NaN is no JSON number"),
    "deep JSON": (file_of(b"[" * 100_000), "recursion"),
    "deep objects": (file_of(b'{"a":' * 100_000), "recursion"),
    "a number of 5000 digits": (file_of(b'{"a": ' + b"9" * 5000 + b"}"), "digits"),
    "a key twice": (file_of(b'{"a":{},"a":{}}'), "names a key twice"),
    "entry no object": (file_of({"a": 1}), "'a' is malformed"),
    "entry without shape": (file_of({"a": {"dtype": "F32"}}), "malformed"),
    "entry with more": (file_of({"a": {**entry()["a"], "x": 1}}, b"\0" * 24), "malformed"),
    "shape no list": (file_of(entry(shape=3), b"\0" * 24), "malformed"),
    "negative shape": (file_of(entry(shape=[2, -3]), b"\0" * 24), "malformed"),
    "two negative sizes": (file_of(entry(shape=[-2, -3]), b"\0" * 24), "malformed"),
    "sizes as text": (file_of(entry(shape=["2", "3"]), b"\0" * 24), "malformed"),
    "sizes as fractions": (file_of(entry(shape=[2.0, 3.0]), b"\0" * 24), "malformed"),
    "sizes as booleans": (file_of(entry(shape=[True], offsets=[0, 4]), b"\0" * 4), "malformed"),
    "nested sizes": (file_of(entry(shape=[[2], 3]), b"\0" * 24), "malformed"),
    "no offsets": (file_of(entry(offsets=None), b"\0" * 24), "malformed"),
    "three offsets": (file_of(entry(offsets=[0, 12, 24]), b"\0" * 24), "malformed"),
    "negative offsets": (file_of(entry(offsets=[-24, 0]), b"\0" * 24), "malformed"),
    "offsets reversed": (file_of(entry(offsets=[24, 0]), b"\0" * 24), "but it has -24"),
    "offsets beyond the file": (
        file_of(entry(offsets=[0, 2**60])),
        "but it has 1152921504606846976",
    ),
    "body cut short": (file_of(entry(), b"\0" * 23), "take 24 bytes, but its body has 23"),
    "bytes left over": (file_of(entry(), b"\0" * 25), "take 24 bytes, but its body has 25"),
    "a hole before": (file_of(entry(offsets=[4, 28]), b"\0" * 28), "hole at byte 0"),
    "a hole between": (
        file_of(entry() | entry(offsets=[28, 52], name="b"), b"\0" * 52),
        "hole at byte 24",
    ),
    "the same bytes twice": (file_of(entry() | entry(name="b"), b"\0" * 24), "overlap"),
    "overlapping bytes": (
        file_of(entry() | entry(offsets=[20, 44], name="b"), b"\0" * 44),
        "overlap",
    ),
    "a trillion numbers": (file_of(entry(shape=[10**12])), "takes 4000000000000 bytes"),
    "a huge product": (file_of(entry(shape=[2**40, 2**40])), "which no tensor can have"),
    "a huge product with a zero": (
        file_of(entry(shape=[2**40, 2**40, 0], offsets=[0, 0])),
        "which no tensor can have",
    ),
    "a product that wraps around to 24": (
        file_of(entry(shape=[2**62, 4, 6]), b"\0" * 24),
        "which no tensor can have",
    ),
    "a thousand dimensions": (
        file_of(entry(shape=[1] * 1000, offsets=[0, 4]), b"\0" * 4),
        "which no tensor can have",
    ),
    "unknown dtype": (file_of(entry(dtype="F128"), b"\0" * 24), "has the dtype 'F128'"),
    "complex": (file_of(entry(dtype="C64"), b"\0" * 48), "has the dtype 'C64'"),
    "eight-bit floats": (file_of(entry(dtype="F8_E4M3"), b"\0" * 6), "has the dtype"),
    "booleans": (file_of(entry(dtype="BOOL"), b"\0" * 6), "has the dtype 'BOOL'"),
    "dtype no text": (file_of(entry(dtype=["F32"]), b"\0" * 24), "malformed"),
    "metadata no object": (file_of({"__metadata__": 1, **entry()}, b"\0" * 24), "metadata"),
    "metadata no text": (file_of({"__metadata__": {"a": 1}, **entry()}, b"\0" * 24), "metadata"),
    "our metadata no JSON": (
        file_of({"__metadata__": {"tutti": "{"}, **entry()}, b"\0" * 24),
        "Expecting property name",
    ),
    "our metadata deep": (
        file_of({"__metadata__": {"tutti": "[" * 100_000}, **entry()}, b"\0" * 24),
        "recursion",
    ),
    **{f"pickle {n}": (pickle_bomb(n), "it is a pickle" if n > 1 else "long") for n in range(6)},
    "torch.save": (torch_save_bytes(), "it is a zip, as torch.save writes"),
    "a zip": (zip_bytes(), "it is a zip"),
    "an .npy file": (b"\x93NUMPY\1\0" + b"x" * 80, "it is an .npy file"),
    "a shell script": (b"#!/bin/sh\nrm -rf /\n", "bytes long"),
}
