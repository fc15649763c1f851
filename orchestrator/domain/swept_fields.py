"""The fields of a spec's parts that a sweep may be over, each named `part.field`."""

import difflib
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from orchestrator.domain.spec_part import SpecPart

Parts = Mapping[str, SpecPart]


def check_paths(paths: Iterable[str], parts: Parts) -> None:
    """Raise ValueError for a path that names none of the parts' fields."""
    known = _fields(parts)
    for path in paths:
        if path not in known:
            near = difflib.get_close_matches(path, known, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(f"{path!r} cannot be swept; {hint}allowed are {', '.join(known)}")


def whole_number_paths(parts: Parts) -> Collection[str]:
    """The fields that take whole numbers and no others."""
    kinds = {path: (kind, *getattr(kind, "__args__", ())) for path, kind in _fields(parts).items()}
    return {path for path, options in kinds.items() if int in options}


def vary(parts: Parts, values: Mapping[str, Any]) -> dict[str, SpecPart]:
    """The parts with other values; ValueError, with the reason, for those they do not take."""
    changed = {name: part.model_dump() for name, part in parts.items()}
    for path, value in values.items():
        part, _, field = path.partition(".")
        changed[part][field] = value
    try:
        return {name: type(part).model_validate(changed[name]) for name, part in parts.items()}
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        place = ".".join(map(str, detail["loc"]))
        raise ValueError(f"{place}: {detail['msg'].removeprefix('Value error, ')}") from error


def read(parts: Parts, paths: Iterable[str]) -> dict[str, Any]:
    """The parts' values of some fields, as JSON."""
    values = {name: part.model_dump(mode="json") for name, part in parts.items()}
    return {path: values[part].get(name) for path in paths for part, name in [path.split(".")]}


def _fields(parts: Parts) -> dict[str, Any]:
    """Every field's path, and the type it takes."""
    return {
        f"{name}.{field}": info.annotation
        for name, part in parts.items()
        for field, info in type(part).model_fields.items()
    }
