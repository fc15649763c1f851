import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from encoders.errors import EncoderError
from encoders.modules.named_tables import NamedTables

NAMES = ["a", "a.b", "../x", "weight", "training", "_buffers", "a/b", "..", " ", "日本", "add"]
names = st.text(min_size=1, max_size=8).filter(str.isprintable)


def tables_of(*names: str) -> NamedTables:
    tables = NamedTables(2)
    for i, name in enumerate(names):
        tables.add(name, torch.full((i % 3 + 1, 2), float(i)))
    return tables


@given(st.lists(names, unique=True, max_size=5))
@settings(max_examples=40, deadline=None)
def test_state_dict_brings_back_any_names_in_their_order(names: list[str]) -> None:
    parent = nn.ModuleDict({"x": tables_of(*names)})
    other = nn.ModuleDict({"x": tables_of("old", *names[:1])})
    other.load_state_dict(parent.state_dict())
    loaded = other["x"]
    assert isinstance(loaded, NamedTables)
    assert list(loaded) == names
    for i, name in enumerate(names):
        assert torch.equal(loaded[name], torch.full((i % 3 + 1, 2), float(i)))


def test_names_are_data_and_never_attributes(tmp_path: Path) -> None:
    tables = tables_of(*NAMES)
    assert tables.training is True
    assert callable(tables.add)
    save_file(tables.state_dict(), tmp_path / "tables.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["tables.safetensors"]
    loaded = NamedTables(2)
    loaded.load_state_dict(load_file(tmp_path / "tables.safetensors"))
    assert sorted(loaded) == sorted(NAMES)


def test_tables_are_copies_that_move_with_the_module() -> None:
    given_table = torch.ones(1, 2, requires_grad=True)
    tables = NamedTables(2)
    tables.add("a.b", given_table)
    with torch.no_grad():
        given_table.zero_()
    assert torch.equal(tables["a.b"], torch.ones(1, 2))
    assert not tables["a.b"].requires_grad
    clone = copy.deepcopy(tables).double()
    assert clone["a.b"].dtype == torch.float64
    assert tables["a.b"].dtype == torch.float32
    assert not list(tables.parameters())


@pytest.mark.parametrize("name", ["", "a\nb", "\0", "\ud800", None, 3, ("a",)])
def test_names_that_are_no_printable_text_are_refused(name: Any) -> None:
    with pytest.raises(EncoderError, match="must be printable text"):
        NamedTables(2).add(name, torch.ones(1, 2))


@pytest.mark.parametrize(
    "table",
    [
        torch.ones(2),
        torch.ones(1, 3),
        torch.ones(0, 2),
        torch.ones(1, 1, 2),
        torch.ones(1, 2, dtype=torch.int64),
        torch.tensor([[0.0, float("nan")]]),
        torch.tensor([[0.0, float("inf")]]),
    ],
)
def test_other_tensors_are_refused_also_from_a_state_dict(table: torch.Tensor) -> None:
    with pytest.raises(EncoderError, match="'a'"):
        NamedTables(2).add("a", table)
    with pytest.raises(EncoderError, match="'a'"):
        NamedTables(2).load_state_dict({"a": table})
