import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from encoders.files.weights_header import WeightsHeader
from tests.encoders.hostile_files import NO_SAFETENSORS, entry, file_of


def read(data: bytes) -> WeightsHeader:
    return WeightsHeader.read(io.BytesIO(data), len(data))


@pytest.mark.parametrize("name", NO_SAFETENSORS)
def test_what_is_no_safetensors_file_is_refused_with_the_reason(name: str) -> None:
    data, reason = NO_SAFETENSORS[name]
    with pytest.raises((ValueError, RecursionError), match=reason):
        read(data)


def test_entries_and_the_place_of_the_body_are_read() -> None:
    data = file_of(entry(offsets=[8, 32]) | entry((1, 4), (0, 8), "BF16", "b"), b"\0" * 32)
    header = read(data)
    assert header.entries["a"].dtype is torch.float32
    assert header.entries["b"].dtype is torch.bfloat16
    assert header.entries["b"].shape == (1, 4)
    assert (header.entries["a"].start, header.entries["a"].stop) == (8, 32)
    assert header.body_start == len(data) - 32
    assert header.metadata is None


def test_a_header_of_128_bytes_is_not_taken_for_a_pickle() -> None:
    """Its first byte is 0x80, as a pickle's."""
    header = file_of(entry())[8:]
    assert read(file_of(header + b" " * (128 - len(header)), b"\0" * 24)).entries


def test_empty_tensors_and_scalars_are_allowed() -> None:
    header = read(file_of(entry([0, 5], [4, 4]) | entry([], [0, 4], name="b"), b"\0" * 4))
    assert header.entries["a"].shape == (0, 5)
    assert header.entries["b"].shape == ()


def test_the_metadata_of_others_is_left_out_and_ours_is_parsed() -> None:
    def metadata(values: object) -> object:
        return read(file_of({"__metadata__": values, **entry()}, b"\0" * 24)).metadata

    assert metadata({"format": "pt"}) is None
    assert metadata({"format": "pt", "tutti": '{"kind": "x"}'}) == {"kind": "x"}


@given(st.binary(max_size=200))
@settings(max_examples=100, deadline=None)
def test_any_bytes_are_refused_with_a_value_error(data: bytes) -> None:
    with pytest.raises((ValueError, RecursionError)):
        read(data)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets", "a"]), inner)
        ),
        max_leaves=12,
    )
)
@settings(max_examples=100, deadline=None)
def test_any_json_is_read_or_refused_with_a_value_error(header: object) -> None:
    try:
        entries = read(file_of(header)).entries.values()
    except (ValueError, RecursionError):
        return
    assert all(entry.start == entry.stop == 0 for entry in entries)
