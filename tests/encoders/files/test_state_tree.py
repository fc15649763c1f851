import json
import math
from collections import Counter, OrderedDict
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from encoders.config import TaskType
from encoders.errors import WeightsError
from encoders.files.state_tree import flatten_state, restore_state


def round_trip(value: Any) -> Any:
    tensors: dict[str, Tensor] = {}
    text = json.dumps(flatten_state(value, "state", tensors), allow_nan=False)
    restored = restore_state(json.loads(text), tensors)
    assert not tensors
    return restored


def assert_identical(found: Any, expected: Any) -> None:
    """Equal, of the same types, floats to the last bit, dicts in the same order."""
    assert type(found) is type(expected)
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        assert [type(key) for key in found] == [type(key) for key in expected]
        for key in expected:
            assert_identical(found[key], expected[key])
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for a, b in zip(found, expected, strict=True):
            assert_identical(a, b)
    elif isinstance(expected, float):
        assert found.hex() == expected.hex()
        assert math.copysign(1, found) == math.copysign(1, expected)
    elif isinstance(expected, Tensor):
        assert found is expected
    else:
        assert found == expected


leaves = (
    st.none()
    | st.booleans()
    | st.integers(-(2**80), 2**80)
    | st.floats(allow_nan=False)
    | st.just(math.nan)
    | st.text(max_size=5)
    | st.builds(lambda: torch.ones(2))
)
values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3) | st.integers(-3, 3), inner, max_size=4)
        | st.dictionaries(st.integers(0, 9), st.integers(1, 5), max_size=3).map(Counter)
    ),
    max_leaves=15,
)


@given(values)
@settings(max_examples=200, deadline=None)
def test_any_state_comes_back_equal_type_for_type(value: Any) -> None:
    assert_identical(round_trip(value), value)


def test_keys_that_read_alike_keep_their_own_tensors() -> None:
    tensors = [torch.full((1,), float(i)) for i in range(4)]
    value = {0: tensors[0], "0": tensors[1], "a/b": tensors[2], "a": {"b": tensors[3]}}
    assert_identical(round_trip(value), value)


def test_an_ordered_dict_is_a_dict_and_an_enum_is_its_text() -> None:
    assert_identical(round_trip(OrderedDict(b=1, a=2)), {"b": 1, "a": 2})
    assert round_trip({"task": TaskType.SEQ_CLS}) == {"task": "SEQ_CLS"}


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"a": [1, {2, 3}]}, r"^state/a/1 is a set"),
        ({"a": len}, r"^state/a is a builtin_function_or_method"),
        ({"a": b"x"}, r"^state/a is a bytes"),
        ({(1, 2): 3}, r"^state is a dict"),
        ({1.5: 3}, r"^state is a dict"),
        ({None: 3}, r"^state is a dict"),
        (torch.Generator(), r"^state is a Generator"),
        (1j, r"^state is a complex"),
    ],
)
def test_what_cannot_be_kept_is_refused_with_its_place(value: Any, reason: str) -> None:
    with pytest.raises(WeightsError, match=f"{reason}.*a state holds"):
        flatten_state(value, "state", {})


@pytest.mark.parametrize(
    "tree",
    [
        {},
        {"a": 1},
        {"tensor": "missing"},
        {"tensor": 1},
        {"tensor": "t", "tuple": []},
        {"tuple": 1},
        {"tuple": {"dict": []}},
        {"dict": {"a": 1}},
        {"dict": [["a"]]},
        {"dict": [["a", 1, 2]]},
        {"dict": [[["a"], 1]]},
        {"dict": [[None, 1]]},
        {"dict": [[1.5, 1]]},
        {"dict": [["a", 1], ["a", 2]]},
        {"dict": ["ab"]},
        {"counter": [["a", {"no": 1}]]},
        {"float": "1.0"},
        {"float": 1},
        {"float": "infinity"},
        {"pickle": "gASVAAAA"},
        [{"tensor": "t"}, {"tensor": "t"}],
    ],
)
def test_a_tree_that_was_never_written_is_refused(tree: Any) -> None:
    with pytest.raises(ValueError, match="no part of a state|no key and value|comes twice"):
        restore_state(tree, {"t": torch.ones(1)})
