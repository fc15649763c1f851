import hashlib
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from encoders.errors import WeightsError
from encoders.files.weights_file import check_finite, dump_tensors, load_tensors, open_weights
from tests.encoders.hostile_files import NO_SAFETENSORS, entry, file_of

SHAPES = {"a": (2, 3), "b.weight": (4,)}


@pytest.fixture
def data() -> bytes:
    return dump_tensors({"a": torch.arange(6.0).view(2, 3), "b.weight": torch.ones(4)})


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
    ("shapes", "reason"),
    [
        ({}, "it holds 'a', 'b.weight'; expected is nothing but no tensor"),
        ({"a": (2, 3)}, "it holds 'b.weight'; expected is nothing but 'a'"),
        ({"a": (3, 2), "b.weight": (4,)}, r"'a' is float32 \(2, 3\), expected float32 \(3, 2\)"),
        ({"a": (6,), "b.weight": (4,)}, r"'a' is float32 \(2, 3\), expected float32 \(6,\)"),
        ({"A": (2, 3), "b.weight": (4,)}, "it lacks 'A'; it holds 'a', 'b.weight'"),
        ({**SHAPES, "c": (1,)}, "it lacks 'c'; it holds 'a', 'b.weight'"),
        ({str(i): (1,) for i in range(9)}, "it lacks '0', '1', '2', '3', '4', '5' and others;"),
    ],
)
def test_other_keys_or_shapes_are_refused_with_both(
    data: bytes, shapes: dict[str, tuple[int, ...]], reason: str
) -> None:
    with pytest.raises(WeightsError, match=f"^the weights: {reason}"):
        load_tensors(data, shapes)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int32])
def test_another_dtype_is_refused(dtype: torch.dtype) -> None:
    with pytest.raises(WeightsError, match="expected float32"):
        load_tensors(dump_tensors({"a": torch.ones(2, dtype=dtype)}), {"a": (2,)})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_refused(value: float) -> None:
    with pytest.raises(WeightsError, match="'a' holds NaN or infinity"):
        load_tensors(dump_tensors({"a": torch.tensor([0.0, value])}), {"a": (2,)})


def test_a_file_cut_short_anywhere_is_refused(data: bytes) -> None:
    for length in range(len(data)):
        with pytest.raises(WeightsError):
            load_tensors(data[:length], SHAPES)


@pytest.mark.parametrize("name", NO_SAFETENSORS)
def test_what_is_no_safetensors_file_is_refused_with_the_reason(name: str, tmp_path: Path) -> None:
    data, reason = NO_SAFETENSORS[name]
    with pytest.raises(WeightsError, match=f"^the weights: not a safetensors file: .*{reason}"):
        load_tensors(data, {"a": (2, 3)})
    path = tmp_path / "any.safetensors"
    path.write_bytes(data)
    with (
        pytest.raises(WeightsError, match=f"^{path}: not a safetensors file: .*{reason}"),
        open_weights(path),
    ):
        pytest.fail("it was opened")


def test_metadata_of_others_is_ignored_and_ours_comes_back(data: bytes, tmp_path: Path) -> None:
    header = {"__metadata__": {"format": "pt"}, **entry()}
    assert load_tensors(file_of(header, b"\0" * 24), {"a": (2, 3)})["a"].sum() == 0
    tensors = {"a": torch.ones(2)}
    with_metadata = dump_tensors(tensors, {"b": [1, None], "a": "ä"})
    assert with_metadata == dump_tensors(tensors, {"a": "ä", "b": [1, None]})
    (tmp_path / "a").write_bytes(with_metadata)
    with open_weights(tmp_path / "a") as weights:
        assert weights.metadata == {"a": "ä", "b": [1, None]}


@pytest.mark.parametrize(
    "dtype",
    [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8],
)
def test_every_dtype_that_is_written_comes_back_bit_for_bit(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    tensors = {"a": torch.arange(7).to(dtype), "scalar": torch.tensor(3).to(dtype)}
    (tmp_path / "a").write_bytes(dump_tensors(tensors))
    with open_weights(tmp_path / "a") as weights:
        loaded = weights.read()
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)
    assert all(loaded[name].dtype is dtype for name in tensors)


@pytest.mark.parametrize("tensor", [torch.ones(1, dtype=torch.bool), torch.ones(1) * 1j])
def test_what_would_not_be_read_back_is_not_written(tensor: torch.Tensor) -> None:
    with pytest.raises(WeightsError, match="'a' is .*; allowed are float64, float32"):
        dump_tensors({"a": tensor})
    with pytest.raises(WeightsError, match="'__metadata__' is no name"):
        dump_tensors({"__metadata__": torch.ones(1)})


def test_tensors_that_share_memory_are_written_apart() -> None:
    table = torch.arange(6.0)
    data = dump_tensors({"a": table, "b": table[2:4], "c": table})
    loaded = load_tensors(data, {"a": (6,), "b": (2,), "c": (6,)})
    assert torch.equal(loaded["b"], table[2:4])
    assert torch.equal(loaded["a"], loaded["c"])


def test_a_file_that_shrinks_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(dump_tensors({"a": torch.ones(100_000)}))
    with open_weights(path) as weights:
        os.truncate(path, 1000)
        with pytest.raises(WeightsError, match="'a' was cut short while it was read"):
            weights.read()


def test_what_was_read_is_the_readers_own(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(dump_tensors({"a": torch.ones(4)}))
    with open_weights(path) as weights:
        loaded = weights.read()
    path.write_bytes(b"")
    assert loaded["a"].add_(1).tolist() == [2.0] * 4


def test_a_file_larger_than_allowed_or_of_another_digest_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(dump_tensors({"a": torch.ones(4)}))
    size, digest = path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest()
    with open_weights(path, max_bytes=size, sha256=digest) as weights:
        assert weights.read()["a"].sum() == 4
    with pytest.raises(WeightsError, match=f"it has {size} bytes; at most {size - 1}"):
        open_weights(path, max_bytes=size - 1).__enter__()
    with pytest.raises(WeightsError, match=f"its sha256 is {digest}, expected {'0' * 64}"):
        open_weights(path, sha256="0" * 64).__enter__()


def test_whole_numbers_are_finite() -> None:
    check_finite({"a": torch.ones(1, dtype=torch.uint8)}, "here")


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
