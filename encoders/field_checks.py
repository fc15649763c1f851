"""Checks of a config's fields against their declared types. A file's values are any JSON."""

import math
import reprlib
from dataclasses import fields
from enum import StrEnum
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from encoders.errors import ConfigError

MAX_SIZE = 1 << 24  # of any one size: tokens, dimensions, layers, tasks, ranks
MAX_TABLE_VALUES = 1 << 31  # of one prompt's table: 8 GiB

_Enum = TypeVar("_Enum", bound=StrEnum)


def member_of(kind: type[_Enum], value: object) -> _Enum | None:
    """The member that a string names, in any case."""
    return kind.__members__.get(value.upper()) if isinstance(value, str) else None


def check_fields(config: Any, indices: frozenset[str] = frozenset()) -> None:
    """Raise ConfigError for a field of another type than declared, or a whole number out of range.

    `config` is a dataclass. Whole numbers are sizes, from 1 up; those named by `indices`, from 0.
    """
    hints = get_type_hints(type(config))
    for name in (field.name for field in fields(config)):
        value = getattr(config, name)
        kinds = {get_origin(kind) or kind for kind in get_args(hints[name]) or (hints[name],)}
        is_size = type(value) is int and int in kinds
        if not is_size and not _fits(value, kinds):
            allowed = ", ".join(sorted(kind.__name__ for kind in kinds))
            raise ConfigError(f"{name} is {reprlib.repr(value)}; its type must be one of {allowed}")
        lowest = 0 if name in indices else 1
        if is_size and not lowest <= value <= MAX_SIZE:
            raise ConfigError(
                f"{name} is {reprlib.repr(value)}; it must be a whole number "
                f"from {lowest} to {MAX_SIZE}"
            )


def check_std(name: str, value: float) -> None:
    """Raise ConfigError unless `value` is a standard deviation: finite, from 0 up."""
    if not 0 <= value < math.inf:  # NaN too
        raise ConfigError(f"{name} is {value}; it must be a finite number from 0 up")


def checked_table_shape(rows: int, columns: int) -> tuple[int, int]:
    """The shape given. Raises ConfigError where no such table should be allocated."""
    if rows * columns > MAX_TABLE_VALUES:
        raise ConfigError(
            f"a table of {rows} x {columns} is too large: {MAX_TABLE_VALUES} values are allowed"
        )
    return rows, columns


def _fits(value: object, kinds: set[type]) -> bool:
    if isinstance(value, bool):
        return bool in kinds
    if isinstance(value, list) and not all(isinstance(item, str) for item in value):
        return False
    return isinstance(value, tuple(kinds)) or (isinstance(value, int) and float in kinds)
