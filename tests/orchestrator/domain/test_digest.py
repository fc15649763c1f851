import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.domain.digest import (
    canonical_json,
    digest_bytes,
    digest_file,
    digest_json,
    short,
)


@given(st.binary(max_size=100))
def test_digests_are_sha256(data: bytes) -> None:
    digest = digest_bytes(data)
    assert digest == hashlib.sha256(data).hexdigest()
    assert short(digest) == digest[:12]


def test_a_file_has_the_digest_of_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"abc" * 100_000)
    assert digest_file(path) == digest_bytes(path.read_bytes())


def test_one_value_has_one_json() -> None:
    assert canonical_json({"b": [1, 2.5], "a": "é"}) == '{"a":"é","b":[1,2.5]}'
    assert digest_json({"b": 1, "a": 2}) == digest_json({"a": 2, "b": 1})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_no_json_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="Out of range"):
        digest_json({"a": value})
