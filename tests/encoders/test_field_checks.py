from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import pytest

from encoders.errors import ConfigError
from encoders.field_checks import MAX_SIZE, check_fields, check_std, checked_table_shape, member_of


@dataclass
class Example:
    size: int = 1
    index: int | None = 0
    rate: float = 0.5
    flag: bool = False
    names: list[str] | None = None

    def __post_init__(self) -> None:
        check_fields(self, indices=frozenset({"index"}))


@pytest.mark.parametrize(
    "values",
    [{"size": MAX_SIZE}, {"index": None}, {"rate": 1}, {"rate": -1e9}, {"names": ["a"]}],
    ids=str,
)
def test_values_of_the_declared_types_pass(values: dict[str, Any]) -> None:
    Example(**values)


@pytest.mark.parametrize(
    "values",
    [
        {"size": 0},
        {"size": MAX_SIZE + 1},
        {"size": None},
        {"size": True},
        {"size": 1.0},
        {"index": -1},
        {"rate": True},
        {"rate": "1"},
        {"flag": 1},
        {"names": "a"},
        {"names": [1]},
    ],
    ids=str,
)
def test_other_values_are_refused_by_name(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"^{next(iter(values))} is "):
        Example(**values)


def test_a_long_value_is_not_repeated_whole() -> None:
    with pytest.raises(ConfigError) as caught:
        Example(size="x" * 10_000)  # type: ignore[arg-type]
    assert len(str(caught.value)) < 200


def test_members_are_found_in_any_case() -> None:
    kind = StrEnum("kind", {"MLP": "MLP"})
    assert member_of(kind, "mlp") is member_of(kind, "Mlp") is kind("MLP")
    assert member_of(kind, "GRU") is member_of(kind, None) is member_of(kind, 3) is None


def test_spreads_and_tables_have_limits() -> None:
    check_std("std", 0)
    with pytest.raises(ConfigError, match="std is nan"):
        check_std("std", float("nan"))
    assert checked_table_shape(1 << 16, 1 << 15) == (1 << 16, 1 << 15)
    with pytest.raises(ConfigError, match="too large"):
        checked_table_shape(1 << 16, (1 << 15) + 1)
