"""A version leaves as JSON and comes back the same, or not at all."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.domain.digest import digest_json
from orchestrator.domain.errors import IntegrityError
from orchestrator.domain.prompt_version import Artifact, Lineage, PromptVersion, TrainedPrompt
from orchestrator.domain.version_record import dump_version, read_version

JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab.é"), inner, max_size=3),
    max_leaves=8,
)


def make_version(**config: Any) -> PromptVersion:
    names = ("encoder", "prompt_embeddings", "curve")
    trained = TrainedPrompt(
        task="colour",
        config={"template": "{prompt:2}{word} {colour}", **config},
        metrics={"accuracy": 0.1 + 0.2},
        artifacts={name: Artifact(digest_json(name), 10) for name in names},
        lineage=Lineage("tiny", "f" * 64, {"train": "d"}, {"train": 8}, "s", 0, "0.1.0", parent=6),
    )
    made = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
    return PromptVersion(
        **vars(trained), number=7, digest=trained.digest, created_at=made, aliases=("production",)
    )


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.text("xyz", min_size=1), JSON_VALUES, max_size=3))
def test_a_version_comes_back_the_same_with_any_config(config: dict[str, Any]) -> None:
    version = make_version(**config)
    data = dump_version(version)
    assert b"\n" not in data
    assert read_version(data, "x") == version


def test_keys_of_a_newer_program_are_left_out() -> None:
    version = make_version()
    record = json.loads(dump_version(version)) | {"colour_of_the_box": "red"}
    record["lineage"]["weather"] = "rain"
    assert read_version(json.dumps(record), "x") == version


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"config": {"template": "another"}}, "colour@7 is not what its digest says"),
        ({"digest": "0" * 64}, "colour@7 is not what its digest says"),
        ({"artifacts": {}}, "not a prompt version"),
        ({"artifacts": "weights.pkl"}, "not a prompt version: artifacts: "),
        ({"task": "../../etc"}, "not a prompt version"),
        ({"number": -1}, "not a prompt version"),
        ({"created_at": "yesterday"}, "not a prompt version: created_at: "),
        ({"lineage": None}, "not a prompt version: lineage: "),
        ({"config": {"rate": float("nan")}}, "not a prompt version"),
    ],
)
def test_what_is_no_version_or_another_is_refused(change: dict[str, Any], reason: str) -> None:
    record = json.loads(dump_version(make_version())) | change
    with pytest.raises(IntegrityError, match="^the file: " + reason):
        read_version(json.dumps(record), "the file")


@pytest.mark.parametrize("data", [b"", b"[]", b"\x80\x04}", b"{" * 10_000, b"null"])
def test_bytes_that_are_no_record_are_refused(data: bytes) -> None:
    with pytest.raises(IntegrityError, match="the file: not a prompt version"):
        read_version(data, "the file")
