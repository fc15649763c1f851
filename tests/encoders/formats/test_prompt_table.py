import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from encoders.errors import WeightsError
from encoders.formats.prompt_table import export_prompt_table, load_prompt_table

PROMPTS = {"long": torch.randn(4, 3), "short": torch.randn(2, 3), "../ä b": torch.randn(3, 3)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.npy"
    export_prompt_table(path, PROMPTS)
    return path


def test_numpy_reads_the_stacked_prompts_and_zeros_pad_the_short_ones(path: Path) -> None:
    table = np.load(path, allow_pickle=False)
    assert table.shape == (3, 4, 3)
    assert table.dtype == np.float32
    for row, prompt in zip(table, PROMPTS.values(), strict=True):
        assert np.array_equal(row[: len(prompt)], prompt.numpy())
        assert not row[len(prompt) :].any()


def test_numpy_would_write_the_same_file(path: Path, tmp_path: Path) -> None:
    for dtype in (torch.float32, torch.float16):
        export_prompt_table(path, PROMPTS, dtype)
        np.save(tmp_path / "numpys", np.load(path), allow_pickle=False)
        assert (tmp_path / "numpys.npy").read_bytes() == path.read_bytes()


def test_the_id_map_gives_each_prompts_row_and_length(path: Path) -> None:
    ids = json.loads((path.parent / "prompts.ids.json").read_text())
    assert ids["prompts"] == {
        "long": {"id": 0, "num_virtual_tokens": 4},
        "short": {"id": 1, "num_virtual_tokens": 2},
        "../ä b": {"id": 2, "num_virtual_tokens": 3},
    }
    assert ids["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert sorted(p.name for p in path.parent.iterdir()) == ["prompts.ids.json", "prompts.npy"]


def test_bfloat16_is_written_as_tensorrt_llm_reads_it(path: Path) -> None:
    """Its `numpy_to_torch`: two-byte voids, seen as int16, seen as bfloat16."""
    export_prompt_table(path, PROMPTS, torch.bfloat16)
    table = np.load(path, allow_pickle=False)
    assert table.dtype == np.dtype("V2")
    found = torch.from_numpy(table.view(np.int16)).view(torch.bfloat16)
    assert torch.equal(found[1, :2], PROMPTS["short"].bfloat16())


@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=4),
    st.integers(1, 4),
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
)
@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_prompts_come_back_bit_for_bit(
    tmp_path: Path, lengths: list[int], width: int, dtype: torch.dtype
) -> None:
    prompts = {f"p{i}": torch.randn(length, width).to(dtype) for i, length in enumerate(lengths)}
    export_prompt_table(tmp_path / "t.npy", prompts, dtype)
    table = load_prompt_table(tmp_path / "t.npy")
    assert list(table.ids.values()) == list(range(len(prompts)))
    assert dict(table.num_virtual_tokens) == {n: len(p) for n, p in prompts.items()}
    for name, prompt in prompts.items():
        assert table.virtual_tokens(name).dtype is dtype
        assert torch.equal(table.virtual_tokens(name), prompt)


def test_an_unknown_name_is_an_error_with_the_names_there_are(path: Path) -> None:
    with pytest.raises(WeightsError, match="no prompt 'other'; it has long, short, "):
        load_prompt_table(path).virtual_tokens("other")


@pytest.mark.parametrize(
    ("prompts", "reason"),
    [
        ({}, "of one width D are needed, not {}"),
        ({"a": torch.ones(2, 3), "b": torch.ones(2, 4)}, "of one width D are needed"),
        ({"a": torch.ones(3)}, "of one width D are needed"),
        ({"a": torch.ones(0, 3)}, "of one width D are needed"),
        ({"a": torch.ones(2, 3), "b": torch.ones(1, 2, 3)}, "of one width D are needed"),
        ({"a": torch.ones(2, 3), "b": torch.ones(2, 3) / 0}, "'b' holds NaN or infinity"),
        ({"a": torch.full((2, 3), 1e5)}, "as torch.float16: 'a' holds NaN or infinity"),
    ],
)
def test_prompts_that_cannot_be_stacked_are_refused(
    tmp_path: Path, prompts: dict[str, Tensor], reason: str
) -> None:
    with pytest.raises(WeightsError, match=reason):
        export_prompt_table(tmp_path / "t.npy", prompts, torch.float16)
    assert not any(tmp_path.iterdir())


def test_another_suffix_or_dtype_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="name ends in .npy"):
        export_prompt_table(tmp_path / "t.npz", PROMPTS)
    with pytest.raises(WeightsError, match="torch.int8 is no dtype of a prompt table"):
        export_prompt_table(tmp_path / "t.npy", PROMPTS, torch.int8)


def forge(path: Path, data: bytes) -> None:
    """Put `data` in the table's place, with the digest it then has."""
    ids_path = path.with_suffix(".ids.json")
    ids = json.loads(ids_path.read_text()) | {"sha256": hashlib.sha256(data).hexdigest()}
    path.write_bytes(data)
    ids_path.write_text(json.dumps(ids))


def npy(header: str, body: bytes = b"", version: bytes = b"\1\0") -> bytes:
    text = header.encode()
    return b"\x93NUMPY" + version + len(text).to_bytes(2, "little") + text + body


def described(descr: str = "'<f4'", order: str = "False", shape: str = "(3, 4, 3)") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}    \n"


NO_TABLE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "not an .npy array"),
    "half the magic": (b"\x93NUM", "not an .npy array"),
    "version 2": (npy(described(), b"\0" * 144, b"\2\0"), "not an .npy array"),
    "version 9": (npy(described(), b"\0" * 144, b"\x09\0"), "not an .npy array"),
    "header beyond the file": (b"\x93NUMPY\1\0\xff\xff{", "not an .npy array"),
    "object dtype": (npy(described("'|O'"), b"\x80\x04."), "not an .npy array"),
    "structured dtype": (npy(described("[('a', '<f4')]"), b"\0" * 144), "not an .npy array"),
    "big-endian": (npy(described("'>f4'"), b"\0" * 144), "not an .npy array"),
    "float64": (npy(described("'<f8'"), b"\0" * 288), "not an .npy array"),
    "Fortran order": (npy(described(order="True"), b"\0" * 144), "not an .npy array"),
    "code in the header": (npy("__import__('os').abort()\n"), "not an .npy array"),
    "deep header": (npy("(" * 60_000), "not an .npy array"),
    "two dimensions": (npy(described(shape="(12, 3)"), b"\0" * 144), "not an .npy array"),
    "negative": (npy(described(shape="(-3, -4, 3)"), b"\0" * 144), "not an .npy array"),
    "a number of 5000 digits": (npy(described(shape=f"(1, 1, {'9' * 5000})")), "not an .npy array"),
    "a trillion rows": (npy(described(shape="(1000000000000, 4, 3)"), b"\0" * 144), "takes 48000"),
    "wraps around": (
        npy(described(shape="(288230376151711, 4, 3)"), b"\0" * 144),
        "takes 13835058055282128 bytes",
    ),
    "a zero": (npy(described(shape="(0, 4, 3)")), "takes 0 bytes"),
    "cut short": (npy(described(), b"\0" * 143), "takes 144 bytes, but it holds 143"),
    "bytes left over": (npy(described(), b"\0" * 145), "takes 144 bytes, but it holds 145"),
    "another number of prompts": (
        npy(described(shape="(4, 3, 3)"), b"\0" * 144),
        "give each of the table's 4 prompts",
    ),
    "shorter prompts": (npy(described(shape="(3, 3, 4)"), b"\0" * 144), "from 1 to 3"),
    "NaN": (npy(described(), b"\xff" * 144), "'table' holds NaN or infinity"),
    "a pickle": (b"\x80\x04.", "not an .npy array"),
    "a zip": (b"PK\x03\x04" + b"\0" * 30, "not an .npy array"),
}


@pytest.mark.parametrize("name", NO_TABLE)
def test_what_is_no_table_is_refused_with_the_reason(path: Path, name: str) -> None:
    data, reason = NO_TABLE[name]
    forge(path, data)
    with pytest.raises(WeightsError, match=f"^{path}|^{path.with_suffix('.ids.json')}") as raised:
        load_prompt_table(path)
    assert reason in str(raised.value)


def test_a_table_that_was_cut_or_changed_is_refused_with_both_digests(path: Path) -> None:
    data = path.read_bytes()
    for changed in (data[:-1], data + b"x", data[:-1] + b"\1", b""):
        path.write_bytes(changed)
        with pytest.raises(WeightsError, match=f"^{path}: its sha256 is [0-9a-f]+, expected "):
            load_prompt_table(path)


@pytest.mark.parametrize(
    "ids",
    [
        "",
        "[]",
        "{}",
        '{"sha256": 1}',
        '{"sha256": "DIGEST"}',
        '{"sha256": "DIGEST", "prompts": []}',
        '{"sha256": "DIGEST", "prompts": {"a": {"id": 0, "num_virtual_tokens": 1}}}',
        '{"sha256": "DIGEST", "prompts": {"a": 1, "b": 2, "c": 3}}',
        '{"sha256": "DIGEST", "sha256": "DIGEST", "prompts": {}}',
        "[" * 100_000,
    ],
)
def test_an_id_map_that_does_not_fit_is_refused(path: Path, ids: str) -> None:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    path.with_suffix(".ids.json").write_text(ids.replace("DIGEST", digest))
    with pytest.raises(WeightsError, match=f"^{path.with_suffix('.ids.json')}: "):
        load_prompt_table(path)


@pytest.mark.parametrize(
    "change",
    [{"id": 1}, {"id": -1}, {"id": "0"}, {"num_virtual_tokens": 0}, {"num_virtual_tokens": 5}],
)
def test_an_id_or_a_length_out_of_range_is_refused(path: Path, change: dict[str, object]) -> None:
    ids_path = path.with_suffix(".ids.json")
    ids = json.loads(ids_path.read_text())
    ids["prompts"]["long"] |= change
    ids_path.write_text(json.dumps(ids))
    with pytest.raises(WeightsError, match="each of the table's 3 prompts, in order, its id"):
        load_prompt_table(path)


def test_a_table_without_its_id_map_is_refused(path: Path) -> None:
    path.with_suffix(".ids.json").unlink()
    with pytest.raises(WeightsError, match=r"prompts.ids.json: cannot be opened: .*No such file"):
        load_prompt_table(path)
