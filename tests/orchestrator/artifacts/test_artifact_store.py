"""The artifact store keeps bytes whole, unharmed and under their digest only."""

import pickle
import subprocess
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from orchestrator.artifacts.artifact_store import ArtifactStore
from orchestrator.domain.digest import digest_bytes
from orchestrator.domain.errors import IntegrityError, InvalidInput, StoreUnavailable

DATA = bytes(range(256)) * 5000  # more than one chunk

KILLED_WHILE_FLUSHING = """
import os, signal, sys
os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)
from orchestrator.artifacts.artifact_store import ArtifactStore
ArtifactStore(sys.argv[1]).put_bytes(bytes(range(256)) * 5000)
"""


@pytest.fixture(params=["folder", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ArtifactStore:
    memory = f"memory://{uuid.uuid4().hex}/store"
    return ArtifactStore(str(tmp_path / "store") if request.param == "folder" else memory)


@pytest.fixture
def folder(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(str(tmp_path / "store"))


def stored_path(store: ArtifactStore, digest: str) -> Path:
    return Path(store.url) / "sha256" / digest[:2] / digest


def files_below(store: ArtifactStore) -> list[str]:
    return [path.name for path in Path(store.url).rglob("*") if path.is_file()]


def test_bytes_come_back(store: ArtifactStore, tmp_path: Path) -> None:
    artifact = store.put_bytes(DATA)
    assert (artifact.digest, artifact.num_bytes) == (digest_bytes(DATA), len(DATA))
    assert store.exists(artifact.digest)
    assert store.get_bytes(artifact.digest) == DATA
    store.fetch(artifact.digest, tmp_path / "deep" / "copy")
    assert (tmp_path / "deep" / "copy").read_bytes() == DATA


def test_a_file_and_its_bytes_are_one_artifact(store: ArtifactStore, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(DATA)
    artifact = store.put_file(tmp_path / "file")
    assert artifact == store.put_bytes(DATA)
    assert store.get_bytes(artifact.digest) == DATA


def test_empty_bytes_are_an_artifact_too(store: ArtifactStore) -> None:
    assert store.get_bytes(store.put_bytes(b"").digest) == b""


def test_a_missing_artifact_is_named(store: ArtifactStore, tmp_path: Path) -> None:
    digest = digest_bytes(b"never stored")
    assert not store.exists(digest)
    for read in (store.get_bytes, store.verify, lambda d: store.fetch(d, tmp_path / "copy")):
        with pytest.raises(IntegrityError, match=f"{digest} is missing"):
            read(digest)
    assert not (tmp_path / "copy").exists()


def test_a_flipped_bit_is_refused_everywhere(folder: ArtifactStore, tmp_path: Path) -> None:
    digest = folder.put_bytes(DATA).digest
    flipped = bytearray(DATA)
    flipped[700_000] ^= 1
    stored_path(folder, digest).write_bytes(flipped)
    (tmp_path / "copy").write_bytes(b"before")
    actual = digest_bytes(bytes(flipped))
    for read in (folder.get_bytes, folder.verify, lambda d: folder.fetch(d, tmp_path / "copy")):
        with pytest.raises(IntegrityError, match=f"expected {digest}, actual {actual}"):
            read(digest)
    assert (tmp_path / "copy").read_bytes() == b"before"
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["copy"]


def test_a_truncated_artifact_is_refused(folder: ArtifactStore) -> None:
    digest = folder.put_bytes(DATA).digest
    stored_path(folder, digest).write_bytes(DATA[:-1])
    with pytest.raises(IntegrityError, match="expected"):
        folder.get_bytes(digest)


@pytest.mark.parametrize("harmed", [DATA[:-1], DATA[:-1] + b"x"])
def test_putting_again_heals_a_harmed_artifact(folder: ArtifactStore, harmed: bytes) -> None:
    digest = folder.put_bytes(DATA).digest
    stored_path(folder, digest).write_bytes(harmed)
    folder.put_bytes(DATA)
    assert folder.get_bytes(digest) == DATA


def test_putting_again_writes_nothing_and_refreshes_what_is_there(folder: ArtifactStore) -> None:
    path = stored_path(folder, folder.put_bytes(DATA).digest)
    before = path.stat()
    folder.put_bytes(DATA)
    assert path.stat().st_ino == before.st_ino
    assert path.stat().st_mtime_ns > before.st_mtime_ns


@pytest.mark.parametrize(
    "digest",
    ["", "../../etc/passwd", "a" * 63, "a" * 65, "A" * 64, "g" * 64, "a" * 64 + "\n", "/" * 64],
)
def test_a_hostile_digest_never_becomes_a_path(store: ArtifactStore, digest: str) -> None:
    for read in (store.get_bytes, store.exists, store.verify):
        with pytest.raises(IntegrityError, match="64 lower-case hex digits"):
            read(digest)


def test_a_discarded_artifact_is_gone_and_its_neighbours_are_not(store: ArtifactStore) -> None:
    gone, kept = store.put_bytes(b"gone"), store.put_bytes(b"kept")
    for _ in range(2):
        store.discard(gone.digest)
    assert not store.exists(gone.digest)
    assert store.get_bytes(kept.digest) == b"kept"
    with pytest.raises(IntegrityError, match="not a digest"):
        store.discard("../" + kept.digest)


def test_more_than_asked_for_is_refused(store: ArtifactStore) -> None:
    digest = store.put_bytes(DATA).digest
    with pytest.raises(IntegrityError, match=f"{len(DATA)} bytes; expected at most 10"):
        store.get_bytes(digest, max_bytes=10)


def test_a_killed_writer_leaves_no_half_file(folder: ArtifactStore) -> None:
    digest = digest_bytes(DATA)
    stored_path(folder, digest).parent.mkdir(parents=True)
    done = subprocess.run([sys.executable, "-c", KILLED_WHILE_FLUSHING, folder.url])
    assert done.returncode == -9
    assert not folder.exists(digest)
    (orphan,) = files_below(folder)
    assert orphan.endswith(".part")
    assert folder.sweep(older_than_s=3600) == 0
    assert folder.sweep(older_than_s=0) == 1
    folder.put_bytes(DATA)
    assert files_below(folder) == [digest]


def test_a_full_disk_leaves_nothing_and_says_so(
    folder: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    folder.put_bytes(b"another")
    monkeypatch.setattr("os.fsync", no_space)
    with pytest.raises(StoreUnavailable, match=r"cannot store the artifact .* No space left"):
        folder.put_bytes(DATA)
    assert files_below(folder) == [digest_bytes(b"another")]


def test_a_file_that_changes_while_it_is_read_is_refused(
    folder: ArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(DATA)
    monkeypatch.setattr(
        "orchestrator.artifacts.artifact_store.digest_file", lambda path: digest_bytes(b"before")
    )
    with pytest.raises(IntegrityError, match="the bytes are not what their digest says"):
        folder.put_file(tmp_path / "file")
    assert files_below(folder) == []


def test_parallel_puts_of_one_content_give_one_file(folder: ArtifactStore) -> None:
    with ThreadPoolExecutor(8) as pool:
        artifacts = set(pool.map(folder.put_bytes, [DATA] * 32))
    assert len(artifacts) == 1
    assert files_below(folder) == [digest_bytes(DATA)]
    assert folder.get_bytes(digest_bytes(DATA)) == DATA


def test_a_pickled_store_reads_the_same_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = ArtifactStore("relative")
    digest = store.put_bytes(DATA).digest
    copy = pickle.loads(pickle.dumps(store))
    monkeypatch.chdir("/")
    assert copy.get_bytes(digest) == DATA


def test_an_unknown_url_is_explained() -> None:
    with pytest.raises(InvalidInput, match="cannot be opened"):
        ArtifactStore("nosuch://bucket").put_bytes(b"x")
