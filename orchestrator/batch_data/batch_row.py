"""One row of a batch's input: which prompt it asks, with which fields; or why it cannot be used.

A row is `{"task": ..., "fields": {...}}` with an optional "version" (a number or an alias) and "id"
(echoed), or flat: without "fields" every other key is a field. CSV and Parquet rows are flat, their
columns are the keys. `settings.prompt` stands for task and version of all rows;
`settings.columns` says under which key a field (or `task`, `version`, `id`) stands instead.

Fields are text. Numbers and booleans become text as JSON writes them (`7`, `1.5`, `true`); null is
a field that is not there; lists, objects, half surrogate pairs and NUL are the row's error. With
`settings.columns`, nested values that no field is mapped to are left out.
"""

import json
import math
import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from orchestrator.domain.batch import BatchSettings
from orchestrator.domain.dataset import MAX_LINE_CHARS, is_text
from orchestrator.domain.errors import InvalidData, InvalidInput
from orchestrator.domain.prompt_version import PromptRef

_KEYS = ("task", "fields", "version", "id")
_OWN = ("task", "version", "id")


@dataclass(frozen=True)
class BatchRow:
    """`row` from 1 over all files, `line` from 1 in its file, `file` its name where there are
    several. Where `error` is set, the rest is what could still be read. `answers`: those to score,
    from the field `settings.answers_field`."""

    row: int
    line: int
    file: str | None = None
    id: str | int | None = None
    ref: PromptRef | None = None
    fields: Mapping[str, str] = field(default_factory=dict)
    answers: tuple[str, ...] = ()
    error: str | None = None


@dataclass(frozen=True)
class Record:
    """A row as its file holds it: values by key, or the error it is."""

    line: int
    values: Mapping[str, Any] | InvalidData


def batch_row(
    record: Record, row: int, file: str | None, unit: str, settings: BatchSettings
) -> BatchRow:
    """Check a record; what is wrong with it becomes the row's error, and nothing is raised.

    `unit` is what `record.line` counts: `line`, or `row` in Parquet.
    """
    found: dict[str, Any] = {}
    try:
        if isinstance(record.values, InvalidData):
            raise record.values
        for name, value in _parts(record.values, settings):
            found[name] = value
    except InvalidData as error:
        place = f"{unit} {record.line}" if file is None else f"{file} {unit} {record.line}"
        found["error"] = _writable(f"{place}: {error.message}")
    return BatchRow(row, record.line, file, **found)


def _parts(values: Mapping[str, Any], settings: BatchSettings) -> Iterator[tuple[str, Any]]:
    """What a row says, part by part, so that an error leaves what was read before it."""
    columns = settings.columns
    yield "id", _id(values.get(columns.get("id", "id")))
    yield "ref", settings.prompt or _ref(values, settings)
    given = _field_values(values, settings)
    if settings.answers_field is not None:
        answers = _answers(given.get(settings.answers_field), settings.answers_field)
        yield "answers", answers
        if isinstance(given.get(settings.answers_field), list):
            del given[settings.answers_field]
    yield "fields", _texts(given)


def _texts(given: Mapping[str, Any]) -> dict[str, str]:
    texts: dict[str, str] = {}
    for name, value in given.items():
        if isinstance(value, str) and value.isascii() and _is_plain(value):  # nearly all
            texts[name] = value
        elif (text := _text(value, f"the field {_brief(name)}")) is not None:
            texts[name] = text
    return texts


def _ref(values: Mapping[str, Any], settings: BatchSettings) -> PromptRef:
    task = values.get(settings.columns.get("task", "task"))
    version = values.get(settings.columns.get("version", "version"))
    if not isinstance(task, str):
        raise InvalidData("'task' must be a task's name")
    if version is not None and (isinstance(version, bool) or not isinstance(version, str | int)):
        raise InvalidData("'version' must be a number or an alias")
    target = settings.alias if version is None else _text(version, "'version'")
    return _parse_ref(f"{task}@{target}")


@lru_cache(maxsize=4096)
def _parse_ref(text: str) -> PromptRef:
    if len(text) > 300:
        raise InvalidData(f"{_brief(text)} is not a prompt reference")
    try:
        return PromptRef.parse(text)
    except InvalidInput as error:
        raise InvalidData(error.message) from error


def _id(value: Any) -> str | int | None:
    if isinstance(value, bool) or not isinstance(value, str | int | None):
        raise InvalidData("'id' must be text or a whole number")
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
        raise InvalidData("'id' is a number of more than 64 bits")
    return _text(value, "'id'") if isinstance(value, str) else value


def _field_values(values: Mapping[str, Any], settings: BatchSettings) -> dict[str, Any]:
    """The row's fields under their own names, values as they are."""
    if not settings.columns and "fields" not in values:
        return {key: value for key, value in values.items() if key not in _OWN}
    columns = {name: key for name, key in settings.columns.items() if name not in _OWN}
    mapped = {*columns.values(), *(settings.columns.get(name, name) for name in _OWN)}
    if "fields" in values:
        inner = values["fields"]
        if not isinstance(inner, Mapping):
            raise InvalidData(f"'fields' must be an object, this is {_kind(inner)}")
        unknown = [key for key in values if key not in _KEYS and key not in mapped]
        if unknown:
            allowed = ", ".join(_KEYS)
            raise InvalidData(f"unknown key {_brief(unknown[0])}; allowed are {allowed}")
        rest = {key: value for key, value in inner.items() if key not in columns.values()}
        values = {**values, **inner}
    else:
        rest = {key: value for key, value in values.items() if key not in mapped}
    if columns:
        wanted = settings.answers_field
        rest = {k: v for k, v in rest.items() if k == wanted or not _is_nested(v)}
    return rest | {name: values[key] for name, key in columns.items() if key in values}


def _answers(value: Any, name: str) -> tuple[str, ...]:
    """The answers to score: a list of texts, also as JSON text (CSV has no lists), or one text."""
    place = f"the field {_brief(name)}"
    if isinstance(value, str) and value.startswith("["):
        value = _json_texts(value) or value
    if value is None or value == []:
        raise InvalidData(f"{place} holds no answer to score")
    if not isinstance(value, list):
        value = [value]
    texts = [_text(each, place) for each in value]
    if None in texts:
        raise InvalidData(f"{place} holds a null among its answers")
    if len(set(texts)) != len(texts):
        raise InvalidData(f"{place} holds an answer twice")
    return tuple(text for text in texts if text is not None)


def _json_texts(text: str) -> list[Any] | None:
    """The texts of a JSON array, None if it is another text."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    is_array = isinstance(value, list) and all(isinstance(each, str) for each in value)
    return value if is_array else None


def _text(value: Any, place: str) -> str | None:
    """A value's text, None for null; InvalidData for what has none."""
    if isinstance(value, InvalidData):  # a cell of Parquet that cannot be read
        raise InvalidData(f"{place}: {value.message}")
    if value is None or isinstance(value, bool):
        return None if value is None else json.dumps(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise InvalidData(f"{place} holds {value}, which is no number in JSON")
    if isinstance(value, int | float):
        return json.dumps(value)
    if not isinstance(value, str):
        raise InvalidData(f"{place} holds {_kind(value)}; expected text, a number, true or false")
    if len(value) > MAX_LINE_CHARS:
        raise InvalidData(f"{place} holds {len(value)} characters; at most {MAX_LINE_CHARS}")
    if not is_text(value):
        raise InvalidData(f"{place} holds half a surrogate pair")
    if "\0" in value:
        raise InvalidData(f"{place} holds a NUL character")
    return value


def _is_plain(value: str) -> bool:
    return len(value) <= MAX_LINE_CHARS and "\0" not in value


def _is_nested(value: Any) -> bool:
    return not isinstance(value, str | int | float | None)


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bytes: "bytes", type(None): "null"}
    return names.get(type(value)) or ("a number" if isinstance(value, int | float) else str(value))


def _brief(text: str) -> str:
    return reprlib.repr(text)


def _writable(text: str) -> str:
    """An error that can be written as UTF-8, whatever the row held."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")[:1000]
