import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.domain.dataset import MAX_LINE_CHARS
from orchestrator.domain.errors import InvalidData
from orchestrator.domain.prompt_version import PromptRef
from orchestrator.inference.request import parse_request


def line(**value: object) -> bytes:
    return json.dumps({"task": "colour", "fields": {"word": "a1"}, **value}).encode()


def refusal(text: bytes) -> str:
    with pytest.raises(InvalidData) as caught:
        parse_request(text, 7, "production")
    return str(caught.value)


def test_the_alias_is_the_default_one() -> None:
    request = parse_request(line(), 1, "staging")
    assert request.ref == PromptRef("colour", "staging")
    assert request.fields == {"word": "a1"}
    assert request.id is None


@pytest.mark.parametrize(
    ("version", "target"), [(3, 3), ("3", 3), ("staging", "staging"), (None, "production")]
)
def test_a_version_is_a_number_or_an_alias(version: object, target: object) -> None:
    assert parse_request(line(version=version), 1, "production").ref.target == target


@pytest.mark.parametrize("request_id", ["x", 7, 0, "", "é😀"])
def test_the_id_is_kept(request_id: object) -> None:
    assert parse_request(line(id=request_id), 1, "production").id == request_id


@pytest.mark.parametrize("ending", [b"", b"\r", b"  \t"])
def test_white_space_around_a_request_does_not_matter(ending: bytes) -> None:
    assert parse_request(b" " + line() + ending, 1, "production").ref.task == "colour"


def test_numbers_become_text() -> None:
    assert parse_request(line(fields={"word": 7, "x": 1.5}), 1, "p").fields == {
        "word": "7",
        "x": "1.5",
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "line 7: not JSON"),
        (b"no json", "line 7: not JSON: "),
        (line()[:-1], "line 7: not JSON: "),
        (line() + b"x", "line 7: not JSON: Extra data"),
        (b"\xff", "line 7: not JSON: "),
        (b"[" * 100_000, "line 7: not JSON: "),
        (b"[]", "line 7: a request is a JSON object"),
        (b"null", "line 7: a request is a JSON object"),
        (b'"colour"', "line 7: a request is a JSON object"),
        (line(felds={}), "line 7: unknown key 'felds'; allowed are task, fields, version, id"),
        (b'{"fields": {}}', "line 7: 'task' must be a task's name"),
        (line(task=None), "line 7: 'task' must be a task's name"),
        (line(task=7), "line 7: 'task' must be a task's name"),
        (line(task=["colour"]), "line 7: 'task' must be a task's name"),
        (line(task=""), "line 7: '@production' is not a prompt reference"),
        (line(task="../x"), "'../x' is not a name"),
        (line(task="Colour"), "'Colour' is not a name"),
        (line(task="colour@3"), "is not a prompt reference"),
        (line(task="\ud800"), "is not a prompt reference"),
        (line(version=True), "line 7: 'version' must be a number or an alias"),
        (line(version=1.5), "line 7: 'version' must be a number or an alias"),
        (line(version=[1]), "line 7: 'version' must be a number or an alias"),
        (line(version=-1), "line 7: 'colour@-1' is not a prompt reference"),
        (line(version=""), "line 7: 'colour@' is not a prompt reference"),
        (line(version="../x"), "is not a prompt reference"),
        (line(id=True), "line 7: 'id' must be text or a whole number"),
        (line(id=1.5), "line 7: 'id' must be text or a whole number"),
        (line(id={}), "line 7: 'id' must be text or a whole number"),
        (line(id="\ud800"), "line 7: 'id' holds half a surrogate pair"),
        (b'{"task": "colour"}', "line 7: the key 'fields' is missing"),
        (line(fields=None), "line 7: fields: a row is a JSON object, this is NoneType"),
        (line(fields=["a1"]), "line 7: fields: a row is a JSON object, this is list"),
        (line(fields={"word": "\ud800"}), "line 7: fields: the field 'word' holds half a surr"),
        (line(fields={"word": "a" * MAX_LINE_CHARS}), f"bytes; at most {MAX_LINE_CHARS}"),
    ],
)
def test_a_wrong_line_says_what_is_wrong(text: bytes, message: str) -> None:
    assert message in refusal(text)


@given(st.binary(max_size=60))
@settings(max_examples=150, deadline=None)
def test_any_bytes_are_refused_with_the_line_named(text: bytes) -> None:
    assert refusal(text).startswith("line 7: ")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["task", "fields", "a"]), inner, max_size=3)
    ),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from(["task", "fields", "version", "id"]), json_values))
@settings(max_examples=200, deadline=None)
def test_any_object_is_a_request_or_refused(value: dict[str, object]) -> None:
    try:
        request = parse_request(json.dumps(value).encode(), 7, "production")
    except InvalidData as error:
        assert error.message.startswith("line 7: ")  # noqa: PT017
    else:
        json.dumps([request.id, str(request.ref), dict(request.fields)]).encode()
