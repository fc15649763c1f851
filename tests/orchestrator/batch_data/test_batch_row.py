"""One row: what it asks, and what is said of one that cannot be used."""

import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.batch_data.batch_row import BatchRow, Record, batch_row
from orchestrator.domain.batch import BatchSettings
from orchestrator.domain.dataset import MAX_LINE_CHARS
from orchestrator.domain.errors import InvalidData
from orchestrator.domain.prompt_version import PromptRef

NAMED = BatchSettings()
PROMPT = BatchSettings(prompt=PromptRef("colour", 3))


def read(values: Mapping[str, Any], settings: BatchSettings = NAMED) -> BatchRow:
    return batch_row(Record(7, values), 9, None, "line", settings)


def line(**changes: object) -> dict[str, Any]:
    return {"task": "colour", "fields": {"word": "a1"}, **changes}


def test_a_row_with_fields_is_read() -> None:
    assert read(line(id="x")) == BatchRow(
        9, 7, None, "x", PromptRef("colour", "production"), {"word": "a1"}
    )


def test_a_flat_row_is_read() -> None:
    row = read({"task": "colour", "version": 3, "id": 5, "word": "a1", "kind": "b"})
    assert (row.ref, row.id) == (PromptRef("colour", 3), 5)
    assert row.fields == {"word": "a1", "kind": "b"}


@pytest.mark.parametrize(
    ("version", "target"), [(3, 3), ("3", 3), ("staging", "staging"), (None, "production")]
)
def test_a_version_is_a_number_or_an_alias(version: object, target: object) -> None:
    row = read(line(version=version))
    assert row.ref is not None
    assert row.ref.target == target


def test_the_prompt_of_the_run_stands_for_every_row() -> None:
    for values in ({"word": "a1"}, {"task": "other", "version": 8, "word": "a1"}):
        row = read(values, PROMPT)
        assert (row.ref, row.fields, row.error) == (PromptRef("colour", 3), {"word": "a1"}, None)


def test_values_become_text_as_json_writes_them() -> None:
    values = {"a": 7, "b": 1.5, "c": True, "d": False, "e": 1e30, "f": None, "g": ""}
    assert read(values, PROMPT).fields == {
        "a": "7",
        "b": "1.5",
        "c": "true",
        "d": "false",
        "e": "1e+30",
        "g": "",
    }


def test_fields_are_mapped_from_other_columns() -> None:
    settings = BatchSettings(
        prompt=PromptRef("colour", 3), columns={"word": "text", "id": "key", "note": "none"}
    )
    row = read({"text": "a1", "key": 5, "id": "z", "more": "m", "list": [1]}, settings)
    assert (row.id, row.error) == (5, None)
    assert row.fields == {"word": "a1", "id": "z", "more": "m"}


def test_a_mapped_column_is_found_within_fields_and_beside_them() -> None:
    settings = BatchSettings(columns={"word": "text", "note": "remark"})
    row = read({"task": "colour", "fields": {"text": "a1", "x": "y"}, "remark": "r"}, settings)
    assert row.fields == {"word": "a1", "note": "r", "x": "y"}


def test_one_column_can_serve_two_fields_and_the_task() -> None:
    settings = BatchSettings(columns={"word": "kind", "other": "kind", "task": "kind"})
    row = read({"kind": "colour"}, settings)
    assert row.ref == PromptRef("colour", "production")
    assert row.fields == {"word": "colour", "other": "colour"}


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (["red", "blue"], ("red", "blue")),
        ("red", ("red",)),
        ('["red", "blue"]', ("red", "blue")),
        ("[red", ("[red",)),
        ("[1]", ("[1]",)),
        (7, ("7",)),
        ([7, True], ("7", "true")),
    ],
)
def test_answers_to_score_are_a_list_or_a_text(answers: object, expected: tuple[str]) -> None:
    settings = BatchSettings(prompt=PromptRef("colour", 3), answers_field="options")
    row = read({"word": "a1", "options": answers}, settings)
    assert (row.answers, row.error, row.fields["word"]) == (expected, None, "a1")


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        (None, "holds no answer to score"),
        ([], "holds no answer to score"),
        (["a", None], "holds a null among its answers"),
        (["a", "a"], "holds an answer twice"),
        (["a", ["b"]], "holds a list"),
        ({"a": 1}, "holds an object"),
    ],
)
def test_answers_that_cannot_be_scored_are_an_error(answers: object, message: str) -> None:
    settings = BatchSettings(prompt=PromptRef("colour", 3), answers_field="options")
    error = read({"word": "a1", "options": answers}, settings).error
    assert error is not None
    assert error.startswith("line 7: the field 'options' ")
    assert message in error


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"fields": {}}, "'task' must be a task's name"),
        (line(task=None), "'task' must be a task's name"),
        (line(task=7), "'task' must be a task's name"),
        (line(task=""), "'@production' is not a prompt reference"),
        (line(task="../x"), "'../x' is not a name"),
        (line(task="colour@3"), "is not a prompt reference"),
        (line(task="\ud800"), "is not a prompt reference"),
        (line(task="x" * 5000), "is not a prompt reference"),
        (line(version=True), "'version' must be a number or an alias"),
        (line(version=1.5), "'version' must be a number or an alias"),
        (line(version=-1), "'colour@-1' is not a prompt reference"),
        (line(version="../x"), "is not a prompt reference"),
        (line(id=True), "'id' must be text or a whole number"),
        (line(id=1.5), "'id' must be text or a whole number"),
        (line(id={}), "'id' must be text or a whole number"),
        (line(id=1 << 64), "'id' is a number of more than 64 bits"),
        (line(id="\ud800"), "'id' holds half a surrogate pair"),
        (line(id="\0"), "'id' holds a NUL character"),
        (line(felds={}), "unknown key 'felds'; allowed are task, fields, version, id"),
        (line(fields=None), "'fields' must be an object, this is null"),
        (line(fields=["a1"]), "'fields' must be an object, this is a list"),
        (line(fields="a1"), "'fields' must be an object, this is text"),
        (line(fields={"word": ["a"]}), "the field 'word' holds a list; expected text, a number"),
        (line(fields={"word": {}}), "the field 'word' holds an object"),
        (line(fields={"word": b"a"}), "the field 'word' holds bytes"),
        (line(fields={"word": "\udfff"}), "the field 'word' holds half a surrogate pair"),
        (line(fields={"word": "a\0b"}), "the field 'word' holds a NUL character"),
        (line(fields={"word": float("nan")}), "the field 'word' holds nan, which is no number"),
        (line(fields={"word": float("-inf")}), "the field 'word' holds -inf, which is no number"),
        (line(fields={"word": InvalidData("not UTF-8")}), "the field 'word': not UTF-8"),
        (
            line(fields={"word": "a" * (MAX_LINE_CHARS + 1)}),
            f"holds {MAX_LINE_CHARS + 1} characters; at most {MAX_LINE_CHARS}",
        ),
        ({"task": "colour", "word": [1]}, "the field 'word' holds a list"),
    ],
)
def test_a_wrong_row_says_what_is_wrong(values: dict[str, Any], message: str) -> None:
    row = read(values)
    assert row.error is not None
    assert row.error.startswith("line 7: ")
    assert message in row.error


def test_an_error_names_the_file_where_there_are_several() -> None:
    row = batch_row(Record(7, {}), 9, "b.parquet", "row", NAMED)
    assert row.error == "b.parquet row 7: 'task' must be a task's name"
    assert (row.row, row.line, row.file) == (9, 7, "b.parquet")


def test_what_was_readable_is_kept_beside_an_error() -> None:
    row = read(line(id="x", fields={"word": []}))
    assert (row.id, row.ref) == ("x", PromptRef("colour", "production"))
    assert row.error is not None


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)


@given(
    st.dictionaries(
        st.sampled_from(["task", "fields", "version", "id", "options", "\ud800"]), json_values
    ),
    st.sampled_from([NAMED, PROMPT, BatchSettings(columns={"a": "options"}, answers_field="a")]),
)
@settings(max_examples=120, deadline=None)
def test_any_values_are_a_row_that_can_be_written(
    values: dict[str, Any], settings: BatchSettings
) -> None:
    row = read(values, settings)
    shown = [row.id, str(row.ref), row.answers, row.error]
    json.dumps(shown, ensure_ascii=False, allow_nan=False).encode()
    assert row.error is not None or row.ref is not None
