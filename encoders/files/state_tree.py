"""Nested state dicts as JSON and tensors, and back, exactly: no pickle.

A value comes back equal, type for type: tuples as tuples, whole numbers as keys, floats bit for
bit. What JSON lacks is an object with one tag: `{"tuple": [...]}`, `{"dict": [[key, value], ...]}`,
`{"counter": ...}`, `{"float": "inf"}`, `{"tensor": name}`. Anything else is refused, both ways.
"""

import math
import reprlib
from collections import Counter, OrderedDict
from typing import Any

from torch import Tensor

from encoders.errors import WeightsError


def flatten_state(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """JSON for `value`; its tensors are put into `tensors`, each under its path.

    Raises WeightsError, with the path, for a type that cannot be kept.
    """
    if isinstance(value, Tensor):
        while path in tensors:  # the keys 0 and "0" have one path
            path += "+"
        tensors[path] = value
        return {"tensor": path}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(float(value))}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if type(value) is list:
        return [flatten_state(item, f"{path}/{i}", tensors) for i, item in enumerate(value)]
    if type(value) is tuple:
        return {"tuple": flatten_state(list(value), path, tensors)}
    if type(value) in (dict, OrderedDict, Counter):
        pairs = [
            [key, flatten_state(item, f"{path}/{key}", tensors)] for key, item in value.items()
        ]
        if all(isinstance(key, int | str) for key in value):
            return {"counter" if isinstance(value, Counter) else "dict": pairs}
    raise WeightsError(
        f"{path} is a {type(value).__name__}, {reprlib.repr(value)}; a state holds None, numbers, "
        "text, tensors, lists, tuples, and dicts with text or whole numbers as keys"
    )


def restore_state(tree: Any, tensors: dict[str, Tensor]) -> Any:
    """The value `flatten_state` was given; its tensors are taken out of `tensors`.

    Raises ValueError for what `flatten_state` never wrote.
    """
    if isinstance(tree, list):
        return [restore_state(item, tensors) for item in tree]
    if not isinstance(tree, dict):
        return tree
    match tree:
        case {"tensor": str(name)} if len(tree) == 1 and name in tensors:
            return tensors.pop(name)
        case {"float": "inf" | "-inf" | "nan" as text} if len(tree) == 1:
            return float(text)
        case {"tuple": list(items)} if len(tree) == 1:
            return tuple(restore_state(items, tensors))
        case {"dict": list(pairs)} if len(tree) == 1:
            return dict(_restore_pairs(pairs, tensors))
        case {"counter": list(pairs)} if len(tree) == 1:
            return Counter(dict(_restore_pairs(pairs, tensors)))
    raise ValueError(f"{reprlib.repr(tree)} is no part of a state")


def _restore_pairs(pairs: list[Any], tensors: dict[str, Tensor]) -> list[tuple[int | str, Any]]:
    for pair in pairs:
        match pair:
            case [int() | str(), _]:
                continue
        raise ValueError(f"{reprlib.repr(pair)} is no key and value")
    if len({key for key, _ in pairs}) != len(pairs):
        raise ValueError("a key comes twice")
    return [(key, restore_state(value, tensors)) for key, value in pairs]
