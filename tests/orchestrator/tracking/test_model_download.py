"""A prompt comes out of MLflow as it went in, or not at all. Real MLflow on SQLite."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.domain.errors import IntegrityError, InvalidInput, TuttiError, UnknownName
from orchestrator.domain.prompt_version import PromptVersion
from orchestrator.tracking.mlflow_client import open_client
from orchestrator.tracking.mlflow_mirror import MlflowMirror
from orchestrator.tracking.model_download import download_prompt
from tests.orchestrator.tracking.memory_registry import MemoryOutbox, MemoryRegistry

Make = Callable[..., PromptVersion]
TASK = "country-continent"
PRODUCTION = f"models:/{TASK}@production"


@pytest.fixture
def version(
    mirror: MlflowMirror, make_version: Make, outbox: MemoryOutbox, registry: MemoryRegistry
) -> PromptVersion:
    """A version that MLflow has in production."""
    make_version()
    outbox.post("alias_moved", task=TASK, alias="production", number=1)
    assert mirror.deliver().error is None
    return registry.versions[TASK, 1]


@pytest.fixture
def folder(version: PromptVersion, mirror: MlflowMirror) -> Path:
    """Where MLflow keeps the version's files."""
    return Path(mirror.picture(version) or "").parent


@pytest.mark.parametrize("uri", [PRODUCTION, f"models:/{TASK}/1"])
def test_it_is_the_version_and_its_weights(
    version: PromptVersion, tracking_uri: str, uri: str
) -> None:
    found = download_prompt(uri, tracking_uri)
    assert (found.version.ref, found.version.digest) == (version.ref, version.digest)
    assert (found.version.config, found.version.lineage) == (version.config, version.lineage)
    assert found.weights == b"embeddings"


def test_mlflows_own_download_finds_the_same_files(
    version: PromptVersion, tracking_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri)
    monkeypatch.setenv("MLFLOW_REGISTRY_URI", tracking_uri)
    from mlflow.artifacts import download_artifacts

    path = download_artifacts(PRODUCTION, dst_path=str(tmp_path / "got"))
    names = {file.name for file in Path(path).iterdir()}
    assert {"version.json", "prompt_embeddings.safetensors", "encoder.safetensors"} <= names


@pytest.mark.parametrize("file", ["prompt_embeddings.safetensors", "version.json"])
@pytest.mark.parametrize("damage", [b"", b"\x80\x04\x95pickle", None])
def test_altered_files_are_refused(
    version: PromptVersion, folder: Path, tracking_uri: str, file: str, damage: bytes | None
) -> None:
    data = (folder / file).read_bytes()
    flipped = data.replace(b"embeddings", b"embeddinGs")
    (folder / file).write_bytes(flipped if damage is None else damage)
    with pytest.raises(IntegrityError, match=TASK):
        download_prompt(PRODUCTION, tracking_uri)


def test_another_versions_files_are_refused(
    version: PromptVersion, folder: Path, tracking_uri: str
) -> None:
    record = json.loads((folder / "version.json").read_text())
    record["number"] = 2
    (folder / "version.json").write_text(json.dumps(record))
    with pytest.raises(IntegrityError, match=f"its tags say {TASK}@1.*but its files are {TASK}@2"):
        download_prompt(PRODUCTION, tracking_uri)


def test_a_tag_that_was_changed_is_refused(version: PromptVersion, tracking_uri: str) -> None:
    client: Any = open_client(tracking_uri)
    client.set_model_version_tag(TASK, "1", "tutti.digest", "0" * 64)
    with pytest.raises(IntegrityError, match="its tags say"):
        download_prompt(PRODUCTION, tracking_uri)


def test_a_model_that_is_not_tuttis_is_refused(tracking_uri: str, tmp_path: Path) -> None:
    client: Any = open_client(tracking_uri)
    client.create_registered_model("theirs")
    client.create_model_version("theirs", str(tmp_path))
    with pytest.raises(InvalidInput, match="models:/theirs/1: version 1 is not Tutti's"):
        download_prompt("models:/theirs/1", tracking_uri)


@pytest.mark.parametrize("uri", ["models:/nothing@production", f"models:/{TASK}@x", "models:/a/9"])
def test_what_is_not_there_is_named(version: PromptVersion, tracking_uri: str, uri: str) -> None:
    with pytest.raises(UnknownName, match=uri):
        download_prompt(uri, tracking_uri)


@pytest.mark.parametrize(
    "uri", ["", "country-continent@production", "models:/a", "models:/../x@y/z", "runs:/1/model"]
)
def test_what_is_no_model_uri_is_refused(uri: str) -> None:
    with pytest.raises(InvalidInput, match="is not the URI of a model version"):
        download_prompt(uri, "http://127.0.0.1:9")


def test_an_mlflow_that_is_away_is_named() -> None:
    with pytest.raises(TuttiError, match="MLflow at http://127.0.0.1:9: Connection refused"):
        download_prompt(PRODUCTION, "http://user:secret@127.0.0.1:9")
