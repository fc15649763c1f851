"""The artifact store on S3, as moto's server speaks it over HTTP."""

import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from orchestrator.artifacts.artifact_store import ArtifactStore
from orchestrator.artifacts.object_file import list_objects
from orchestrator.artifacts.store_files import StoreFiles
from orchestrator.artifacts.store_url import open_store
from orchestrator.domain.digest import digest_bytes
from orchestrator.domain.errors import IntegrityError, StoreUnavailable
from orchestrator.upkeep.gc import collect
from tests.s3_server import s3_server

DATA = bytes(range(256)) * 5000
START = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with s3_server() as url:
        yield url


@pytest.fixture
def settings(endpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What a user sets: botocore's own variables."""
    import s3fs

    for name, value in {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
    }.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def store(settings: None) -> ArtifactStore:
    bucket = f"bucket-{uuid.uuid4().hex}"
    open_store("s3://x")[0].mkdir(bucket)
    return ArtifactStore(f"s3://{bucket}/deep/store")


def raw(store: ArtifactStore, digest: str) -> tuple[Any, str]:
    """The file system, and an artifact's path in it."""
    fs, root = open_store(store.url)
    return fs, f"{root}/sha256/{digest[:2]}/{digest}"


def test_bytes_come_back_verified(store: ArtifactStore, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(DATA)
    artifact = store.put_bytes(DATA)
    assert store.put_file(tmp_path / "file") == artifact
    assert (store.exists(artifact.digest), store.get_bytes(artifact.digest)) == (True, DATA)
    store.fetch(artifact.digest, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == DATA
    assert [file.digest for file in StoreFiles(store.url).list()] == [artifact.digest]


def test_a_flipped_bit_in_the_bucket_is_found_and_healed_by_the_next_put(
    store: ArtifactStore,
) -> None:
    digest = store.put_bytes(DATA).digest
    fs, path = raw(store, digest)
    fs.pipe(path, DATA[:-1] + b"x")
    for read in (store.get_bytes, store.verify):
        with pytest.raises(IntegrityError, match=f"expected {digest}"):
            read(digest)
    store.put_bytes(DATA)
    assert store.get_bytes(digest) == DATA


def test_a_missing_object_or_bucket_is_named(store: ArtifactStore) -> None:
    digest = digest_bytes(b"never stored")
    with pytest.raises(IntegrityError, match=f"{store.url}.*{digest} is missing"):
        store.get_bytes(digest)
    with pytest.raises(StoreUnavailable, match="s3://no-such-bucket"):
        ArtifactStore("s3://no-such-bucket/x").put_bytes(DATA)
    assert list(StoreFiles(f"{store.url}/empty").list()) == []


def test_missing_credentials_are_an_error_of_ours(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    import s3fs

    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    s3fs.S3FileSystem.clear_instance_cache()
    for attempt in (lambda: store.put_bytes(b"x"), lambda: list(StoreFiles(store.url).list())):
        with pytest.raises(StoreUnavailable, match="[Cc]redentials"):
            attempt()


def test_a_server_that_is_away_is_an_error_of_ours(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    import s3fs

    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(StoreUnavailable, match="127.0.0.1:1"):
        store.put_bytes(b"x")


class Named:
    def __init__(self, *digests: str) -> None:
        self._digests = frozenset(digests)

    def digests(self) -> frozenset[str]:
        return self._digests


def run(store: ArtifactStore, day: int, *named: str) -> list[str | None]:
    files, now = StoreFiles(store.url), START + timedelta(days=day)
    found = collect(files, Named(*named), now, 7 * 86_400, True)  # type: ignore[arg-type]
    return [file.digest for file in found.removed]


def test_garbage_in_a_bucket_goes_after_its_grace(store: ArtifactStore) -> None:
    kept, orphan = store.put_bytes(b"kept").digest, store.put_bytes(b"orphan").digest
    fs, path = raw(store, orphan)
    fs.pipe(f"{path.rpartition('/')[0]}/.{orphan}.{'0' * 32}.part", b"half")
    assert run(store, 0, kept) == []
    assert run(store, 6, kept) == []
    assert sorted(run(store, 7, kept), key=str) == [orphan, None] or run(store, 7, kept) == []
    assert (store.exists(kept), store.exists(orphan)) == (True, False)
    assert [file.digest for file in StoreFiles(store.url).list()] == [kept]


def test_a_put_refreshes_an_object_so_that_it_is_not_removed(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S3 counts in seconds, so the first put is dated back."""
    import orchestrator.artifacts.object_file as object_file

    orphan = store.put_bytes(b"orphan").digest
    stamp = object_file._stamp
    monkeypatch.setattr(object_file, "_stamp", lambda info: stamp(info) - 5_000_000_000)
    run(store, 0)
    monkeypatch.undo()
    assert run(store, 8) == []
    assert store.exists(orphan)


def test_what_is_set_aside_is_found_by_nobody(store: ArtifactStore) -> None:
    files, digest = StoreFiles(store.url), store.put_bytes(DATA).digest
    (file,) = files.list()
    name = files.set_aside(file)
    assert (store.exists(digest), list(files.list())) == (False, [])
    fs, root = open_store(store.url)
    assert fs.cat_file(f"{root}/{name}") == DATA
    assert list(list_objects(fs, f"{root}/quarantine"))
