"""Reads a task spec from YAML text: bounded, without aliases or duplicate keys, errors with lines.

Nothing but plain scalars, lists and mappings is ever built, and nothing is written.
"""

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import yaml
from pydantic import BaseModel, ValidationError

from orchestrator.domain.errors import InvalidSpec
from orchestrator.domain.task_spec import TaskSpec

MAX_BYTES = 1 << 20
MAX_DEPTH = 32
_STARTS = (yaml.SequenceStartEvent, yaml.MappingStartEvent)
_ENDS = (yaml.SequenceEndEvent, yaml.MappingEndEvent)
Location = tuple[str | int, ...]


class _Refused(Exception):
    def __init__(self, line: int, message: str) -> None:
        super().__init__(line, message)
        self.line, self.message = line, message


def read_spec(path: Path) -> TaskSpec:
    """Read and validate one spec file; raise InvalidSpec naming the file and the line or key."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise InvalidSpec(f"{path}: more than {MAX_BYTES} bytes; a spec has at most that many")
        text = data.decode("utf-8")
    except FileNotFoundError as error:
        raise InvalidSpec(f"{path}: no such file", "Give the path of a task spec.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidSpec(f"{path}: cannot be read as UTF-8 text: {error}") from error
    return parse_spec(text, str(path))


def parse_spec(text: str, name: str) -> TaskSpec:
    """Validate YAML `text`; `name` stands for the file in errors."""
    try:
        lines: dict[Location, int] = {}
        value = _build(_compose(text), (), lines)
    except _Refused as error:
        raise InvalidSpec(f"{name}:{error.line}: {error.message}") from error
    if not isinstance(value, dict):
        raise InvalidSpec(
            f"{name}: a spec is a mapping of keys, this is {_kind(value)}",
            "Start from examples/tasks/country-continent.yaml.",
        )
    try:
        return TaskSpec.model_validate(value)
    except ValidationError as error:
        raise InvalidSpec(_explain(error, name, lines)) from error


def _compose(text: str) -> yaml.Node:
    try:
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            depth += isinstance(event, _STARTS) - isinstance(event, _ENDS)
            line = event.start_mark.line + 1 if event.start_mark else 1
            if isinstance(event, yaml.AliasEvent):
                raise _Refused(line, "YAML aliases (*name) are not allowed")
            if depth > MAX_DEPTH:
                raise _Refused(line, f"nested deeper than {MAX_DEPTH} levels")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise _Refused(line, f"not valid YAML: {error.problem or error}") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise _Refused(1, f"not valid YAML: {error}") from error
    if node is None:
        raise _Refused(1, "the file is empty; a spec is a mapping of keys")
    return node


def _build(node: yaml.Node, at: Location, lines: dict[Location, int]) -> Any:
    """Turn a node into plain values, recording each key's line."""
    line = node.start_mark.line + 1
    lines.setdefault(at, line)
    if isinstance(node, yaml.SequenceNode):
        return [_build(item, (*at, i), lines) for i, item in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode):
        return _build_mapping(node, at, lines)
    try:
        node.value.encode()  # half a surrogate pair is no text
        return yaml.SafeLoader("").construct_object(node, deep=True)
    except (yaml.YAMLError, ValueError) as error:
        raise _Refused(line, f"cannot read {node.value!r} as {node.tag}") from error


def _build_mapping(
    node: yaml.MappingNode, at: Location, lines: dict[Location, int]
) -> dict[str, Any]:
    mapping: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key, line = key_node.value, key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode) or not isinstance(key, str):
            raise _Refused(line, "a key must be plain text")
        if key in mapping:
            raise _Refused(line, f"the key {key!r} is given twice")
        lines[(*at, key)] = line
        mapping[key] = _build(value_node, (*at, key), lines)
    return mapping


def _explain(error: ValidationError, name: str, lines: dict[Location, int]) -> str:
    details = cast(list[dict[str, Any]], error.errors(include_url=False))
    return "\n".join(
        f"{_place(name, _location(detail), lines)}: {_sentence(detail['type'], detail)}"
        for detail in details
    )


def _location(detail: dict[str, Any]) -> Location:
    """Where an error is; a check of the whole spec opens its message with the key instead."""
    if detail["loc"]:
        return cast(Location, detail["loc"])
    key = str(detail["msg"]).removeprefix("Value error, ").partition(":")[0]
    return tuple(key.split("."))


def _place(name: str, location: Location, lines: dict[Location, int]) -> str:
    known = location
    while known and known not in lines:
        known = known[:-1]
    return f"{name}:{lines.get(known, 1)}"


def _sentence(kind: str, detail: dict[str, Any]) -> str:
    key = ".".join(str(part) for part in detail["loc"])
    found = repr(detail["input"])
    found = found if len(found) <= 80 else found[:77] + "..."
    if kind == "extra_forbidden":
        allowed = sorted(_fields_at(detail["loc"][:-1]))
        near = difflib.get_close_matches(str(detail["loc"][-1]), allowed, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        return f"unknown key {key!r}; {hint}allowed are {', '.join(allowed)}"
    if kind == "missing":
        return f"the key {key!r} is missing"
    message = str(detail["msg"]).removeprefix("Value error, ")
    return f"{key}: {message} (found {found})" if key else message


def _fields_at(location: Location) -> list[str]:
    """The keys allowed at a place of the spec."""
    model: type[BaseModel] = TaskSpec
    for part in location:
        if part in model.model_fields:  # else a key of a mapping, or which of its values this is
            model = next(_models_in(model.model_fields[str(part)].annotation))
    return list(model.model_fields)


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _models_in(argument)


def _kind(value: Any) -> str:
    return {list: "a list", str: "text", type(None): "empty"}.get(type(value), repr(value))
