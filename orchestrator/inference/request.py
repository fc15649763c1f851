"""One line of a batch input: {"task": ..., "fields": {...}}, optional "version" and "id".

A line that cannot be used becomes an error in its own output line; it never stops a run.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.domain.dataset import MAX_LINE_CHARS, is_text, text_fields
from orchestrator.domain.errors import InvalidData, InvalidInput
from orchestrator.domain.prompt_version import PromptRef

_KEYS = ("task", "fields", "version", "id")


@dataclass(frozen=True)
class Request:
    """A parsed line. `id` is echoed to the answer."""

    ref: PromptRef
    fields: Mapping[str, str]
    id: str | int | None = None


def parse_request(line: bytes, number: int, default_alias: str) -> Request:
    """Parse line `number` (from 1), or raise InvalidData saying what is wrong with it."""
    place = f"line {number}"
    value = _decode(line, place)
    unknown = [key for key in value if key not in _KEYS]
    if unknown:
        raise InvalidData(f"{place}: unknown key {unknown[0]!r}; allowed are {', '.join(_KEYS)}")
    task, version, request_id = value.get("task"), value.get("version"), value.get("id")
    if not isinstance(task, str):
        raise InvalidData(f"{place}: 'task' must be a task's name")
    if version is not None and (isinstance(version, bool) or not isinstance(version, str | int)):
        raise InvalidData(f"{place}: 'version' must be a number or an alias")
    if isinstance(request_id, bool) or not isinstance(request_id, str | int | None):
        raise InvalidData(f"{place}: 'id' must be text or a whole number")
    if isinstance(request_id, str) and not is_text(request_id):
        raise InvalidData(f"{place}: 'id' holds half a surrogate pair")
    if "fields" not in value:
        raise InvalidData(f"{place}: the key 'fields' is missing")
    fields = text_fields(value["fields"], f"{place}: fields", ())
    try:
        ref = PromptRef.parse(f"{task}@{default_alias if version is None else version}")
    except InvalidInput as error:
        raise InvalidData(f"{place}: {error.message}") from error
    return Request(ref, fields, request_id)


def _decode(line: bytes, place: str) -> dict[str, Any]:
    if len(line) > MAX_LINE_CHARS:
        raise InvalidData(f"{place}: {len(line)} bytes; at most {MAX_LINE_CHARS}")
    try:
        value = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise InvalidData(f"{place}: not JSON: {error}") from error
    if not isinstance(value, dict):
        raise InvalidData(f"{place}: a request is a JSON object")
    return value
