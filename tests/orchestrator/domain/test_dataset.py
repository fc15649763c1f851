import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.domain import dataset as dataset_module
from orchestrator.domain.dataset import MAX_LINE_CHARS, Dataset, parse_dataset, read_dataset
from orchestrator.domain.digest import digest_bytes
from orchestrator.domain.errors import InvalidData

GOOD = b'{"country": "Kenya", "continent": "Africa"}\n'
FIELDS = ("country", "continent")


def refusal(data: bytes) -> str:
    with pytest.raises(InvalidData) as caught:
        parse_dataset(data, "x.jsonl", FIELDS)
    return str(caught.value)


def test_rows_keep_their_order_lines_and_digest(tmp_path: Path) -> None:
    data = GOOD + b"\n  \n" + GOOD.replace(b"Kenya", b"Mali")
    path = tmp_path / "x.jsonl"
    path.write_bytes(data)
    dataset = read_dataset(path, FIELDS)
    assert [row["country"] for row in dataset.rows] == ["Kenya", "Mali"]
    assert dataset.lines == (1, 4)
    assert dataset.place(1) == f"{path}:4"
    assert dataset.digest == digest_bytes(data)
    assert len(dataset) == 2


@pytest.mark.parametrize("ending", [b"\n", b"\r\n", b""])
def test_line_endings_do_not_matter(ending: bytes) -> None:
    dataset = parse_dataset(GOOD.strip() + ending, "x", FIELDS)
    assert dataset.rows == ({"country": "Kenya", "continent": "Africa"},)


def test_numbers_become_their_text_and_other_fields_are_left_out() -> None:
    row = {"country": 7, "continent": 1.5, "note": None, "tags": ["a"], "is": True}
    assert parse_dataset(json.dumps(row).encode(), "x", FIELDS).rows == (
        {"country": "7", "continent": "1.5"},
    )


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "x.jsonl: the data set is empty"),
        (b"\n \n\t\n", "x.jsonl: the data set is empty"),
        (GOOD + b"no json\n", "x.jsonl:2: not JSON: "),
        (GOOD + b"\n\n{'country': 1}\n", "x.jsonl:4: not JSON: "),
        (GOOD + b'{"country": "Mali"', "x.jsonl:2: not JSON: "),
        (GOOD * 2 + GOOD.strip() + GOOD, "x.jsonl:3: not JSON: Extra data"),
        (b'["Kenya"]\n', "x.jsonl:1: a row is a JSON object, this is list"),
        (b'"Kenya"\n', "x.jsonl:1: a row is a JSON object, this is str"),
        (b"null\n", "x.jsonl:1: a row is a JSON object, this is NoneType"),
        (GOOD + b'{"country": "Mali"}\n', "x.jsonl:2: the row lacks the field 'continent'; it ha"),
        (GOOD + b'{"country": "Mali"}\n', "it has 'country'"),
        (b"{}\n", "x.jsonl:1: the row lacks the field 'country'; it has no fields"),
        (GOOD.replace(b'"Kenya"', b"null"), "x.jsonl:1: the field 'country' must be text or a nu"),
        (GOOD.replace(b'"Kenya"', b"true"), "must be text or a number, this is true"),
        (GOOD.replace(b'"Kenya"', b'["a"]'), 'must be text or a number, this is ["a"]'),
        (GOOD.replace(b'"Kenya"', b'{"a": 1}'), 'this is {"a": 1}'),
        (GOOD.replace(b"Kenya", b"\xff"), "x.jsonl:1: not UTF-8 text"),
        (GOOD.replace(b"Kenya", b"\\ud800"), "x.jsonl:1: the field 'country' holds half a surr"),
        (GOOD + b"\xff\xfe{\x00}\x00\n", "x.jsonl:2: not UTF-8 text"),
        (b"\xef\xbb\xbf" + GOOD, "x.jsonl:1: not JSON: Unexpected UTF-8 BOM"),
        (b"[" * 100_000 + b"\n", "x.jsonl:1: not JSON: "),
        (b'{"country": ' + b"9" * 5000 + b"}\n", "x.jsonl:1: not JSON: "),
    ],
)
def test_a_wrong_file_is_refused_with_its_line(data: bytes, message: str) -> None:
    assert message in refusal(data)


def test_a_surrogate_pair_is_a_character() -> None:
    data = GOOD.replace(b"Kenya", b"\\ud83d\\ude00")
    assert parse_dataset(data, "x", FIELDS).rows[0]["country"] == "😀"


def test_a_long_value_is_cut_in_the_message() -> None:
    assert len(refusal(GOOD.replace(b'"Kenya"', b"[" + b"1," * 10_000 + b"1]"))) < 300


def test_a_huge_line_is_refused_with_its_size() -> None:
    line = b'{"country": "' + b"a" * MAX_LINE_CHARS + b'"}\n'
    message = refusal(GOOD + line)
    assert f"x.jsonl:2: the line has {len(line) - 1} bytes; at most {MAX_LINE_CHARS}" in message


def test_a_missing_file_is_named_and_says_where_paths_start(tmp_path: Path) -> None:
    with pytest.raises(InvalidData, match=r"nothing\.jsonl: no such file") as caught:
        read_dataset(tmp_path / "nothing.jsonl", FIELDS)
    assert "relative to the spec's folder" in caught.value.remedy


@pytest.mark.parametrize("path", [Path(), Path("/dev/zero"), Path("/dev/null")])
def test_what_is_no_plain_file_is_refused_unread(path: Path) -> None:
    with pytest.raises(InvalidData, match=f"{path}: not a file"):
        read_dataset(path, FIELDS)


@pytest.mark.parametrize("name", ["a\x00b", "a\ud800b", "a" * 5000, "x.jsonl/y"])
def test_a_path_that_is_no_file_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "x.jsonl").write_bytes(GOOD)
    with pytest.raises(InvalidData, match=r"cannot be read|no such file"):
        read_dataset(tmp_path / name, FIELDS)


def test_an_oversized_file_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    with path.open("wb") as file:
        file.truncate(dataset_module.MAX_BYTES + 1)
    with pytest.raises(InvalidData, match=f"{dataset_module.MAX_BYTES + 1} bytes"):
        read_dataset(path, FIELDS)


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


@given(st.lists(st.fixed_dictionaries(dict.fromkeys(FIELDS, texts)), min_size=1, max_size=5))
@settings(max_examples=100, deadline=None)
def test_what_json_writes_is_read_back(rows: list[dict[str, str]]) -> None:
    data = "\n".join(map(json.dumps, rows)).encode()
    dataset = parse_dataset(data, "x", FIELDS)
    assert list(dataset.rows) == rows
    assert dataset.lines == tuple(range(1, len(rows) + 1))


@given(st.binary(max_size=80))
@settings(max_examples=150, deadline=None)
def test_any_bytes_are_refused_with_the_file_named(data: bytes) -> None:
    assert refusal(data).startswith("x.jsonl")


def test_a_dataset_is_a_value() -> None:
    one, other = (parse_dataset(GOOD, "x", FIELDS) for _ in range(2))
    assert isinstance(one, Dataset)
    assert one == other
