import hashlib
import json
import pickle
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from encoders.errors import WeightsError
from encoders.weights_file import dump_tensors, load_tensors

SHAPES = {"a": (2, 3), "b.weight": (4,)}


@pytest.fixture
def data() -> bytes:
    return dump_tensors({"a": torch.arange(6.0).view(2, 3), "b.weight": torch.ones(4)})


def file_of(header: object, body: bytes = b"") -> bytes:
    """A safetensors file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def entry(shape: object = (2, 3), offsets: object = (0, 24), dtype: str = "F32") -> object:
    return {"a": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


@given(st.dictionaries(st.text(min_size=1, max_size=5), st.lists(st.integers(0, 3), max_size=3)))
@settings(max_examples=25, deadline=None)
def test_tensors_come_back_bit_for_bit(shapes: dict[str, list[int]]) -> None:
    shapes.pop("__metadata__", None)
    tensors = {name: torch.randn(shape) for name, shape in shapes.items()}
    expected = {name: tuple(shape) for name, shape in shapes.items()}
    loaded = load_tensors(dump_tensors(tensors), expected)
    assert set(loaded) == set(tensors)
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)


def test_equal_tensors_give_equal_bytes_whatever_their_order_and_layout(data: bytes) -> None:
    transposed = torch.arange(6.0).view(2, 3).t().contiguous().t()
    assert not transposed.is_contiguous()
    again = {"b.weight": torch.ones(4, requires_grad=True), "a": transposed}
    assert dump_tensors(again) == data


def test_the_bytes_are_the_same_on_every_machine(data: bytes) -> None:
    expected = "5d404491e895e94f93f7a7d42f53877d1bdb6e18c2e0b3962687767a4292d75d"
    assert hashlib.sha256(data).hexdigest() == expected


@pytest.mark.parametrize(
    "shapes",
    [
        {},
        {"a": (2, 3)},
        {"a": (3, 2), "b.weight": (4,)},
        {"a": (6,), "b.weight": (4,)},
        {"A": (2, 3), "b.weight": (4,)},
        {**SHAPES, "c": (1,)},
    ],
)
def test_other_keys_or_shapes_are_refused_with_both(
    data: bytes, shapes: dict[str, tuple[int, ...]]
) -> None:
    with pytest.raises(WeightsError, match=r"the weights hold .*'a'.* expected float32"):
        load_tensors(data, shapes)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int32])
def test_another_dtype_is_refused(dtype: torch.dtype) -> None:
    with pytest.raises(WeightsError, match="expected float32"):
        load_tensors(dump_tensors({"a": torch.ones(2, dtype=dtype)}), {"a": (2,)})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_refused(value: float) -> None:
    with pytest.raises(WeightsError, match="'a' hold NaN or infinity"):
        load_tensors(dump_tensors({"a": torch.tensor([0.0, value])}), {"a": (2,)})


def test_a_file_cut_short_anywhere_is_refused(data: bytes) -> None:
    for length in range(len(data)):
        with pytest.raises(WeightsError):
            load_tensors(data[:length], SHAPES)


def test_trailing_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(WeightsError, match="damaged"):
        load_tensors(data + b"x", SHAPES)


def test_a_pickle_is_refused_and_never_run() -> None:
    class Bomb:
        def __reduce__(self) -> object:
            return (pytest.fail, ("the pickle was run",))

    with pytest.raises(WeightsError, match="not a safetensors file"):
        load_tensors(pickle.dumps(Bomb()), {})


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00" * 7,
        b"\x00" * 8,
        struct.pack("<Q", 2**64 - 1) + b"{}",
        struct.pack("<Q", 2**40) + b"{}",
        file_of(b"{"),
        file_of(b"\xff\xfe"),
        file_of(b"null"),
        file_of(b"[]"),
        file_of(b'"text"'),
        file_of(b"[" * 100_000),
        file_of({"a": 1}),
        file_of({"a": {"dtype": "F32"}}),
        file_of({"a": {"dtype": "F32", "shape": 3, "data_offsets": [0, 12]}}, b"\0" * 12),
        file_of(entry(shape=[2, -3]), b"\0" * 24),
        file_of(entry(shape=["2", "3"]), b"\0" * 24),
        file_of(entry(shape=[[2], 3]), b"\0" * 24),
        file_of(entry(offsets=[0, 2**60]), b"\0" * 24),
        file_of(entry(offsets=[24, 0]), b"\0" * 24),
        file_of(entry(offsets=[4, 28]), b"\0" * 28),
        file_of(entry(offsets=None), b"\0" * 24),
    ],
)
def test_a_file_that_is_no_safetensors_file_is_refused(data: bytes) -> None:
    with pytest.raises(WeightsError):
        load_tensors(data, {"a": (2, 3)})


def test_a_huge_shape_is_refused_before_memory_is_taken() -> None:
    huge = file_of(entry(shape=[2**40, 2**20], offsets=[0, 24]), b"\0" * 24)
    with pytest.raises(WeightsError, match="expected float32"):
        load_tensors(huge, {"a": (2, 3)})
    with pytest.raises(WeightsError, match="damaged"):
        load_tensors(huge, {"a": (2**40, 2**20)})


def test_metadata_in_the_header_is_ignored() -> None:
    header = {"__metadata__": {"format": "pt"}, **entry()}  # type: ignore[dict-item]
    assert load_tensors(file_of(header, b"\0" * 24), {"a": (2, 3)})["a"].sum() == 0


@given(st.binary(max_size=200))
@settings(max_examples=100, deadline=None)
def test_any_bytes_are_refused_with_a_weights_error(data: bytes) -> None:
    with pytest.raises(WeightsError):
        load_tensors(data, {"a": (2, 3)})


@given(st.integers(0, 400), st.integers(0, 255))
@settings(max_examples=100, deadline=None)
def test_a_flipped_byte_is_refused_or_gives_the_shapes_asked_for(at: int, value: int) -> None:
    data = bytearray(dump_tensors({"a": torch.arange(6.0).view(2, 3)}))
    data[at % len(data)] = value
    try:
        loaded = load_tensors(bytes(data), {"a": (2, 3)})
    except WeightsError:
        return
    assert loaded["a"].shape == (2, 3)
    assert bool(torch.isfinite(loaded["a"]).all())
