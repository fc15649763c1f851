"""Collection takes what nothing names, after its grace, and never anything else."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.artifacts.artifact_store import ArtifactStore
from orchestrator.artifacts.store_files import StoredFile, StoreFiles
from orchestrator.domain.digest import digest_bytes
from orchestrator.domain.errors import InvalidInput
from orchestrator.domain.job import Lease
from orchestrator.domain.prompt_version import PromptRef
from orchestrator.registry.database import Database
from orchestrator.registry.job_queue import JobQueue
from orchestrator.registry.prompt_registry import PromptRegistry
from orchestrator.registry.references import References
from orchestrator.upkeep.gc import Collected, check_grace, collect
from orchestrator.upkeep.marks import NOTE, read_marks
from tests.orchestrator.upkeep.conftest import MakeTrained

START = datetime(2026, 1, 1, tzinfo=UTC)
DAY_S = 86_400.0
ORPHAN = b"the checkpoint of a killed driver"


class Named:
    """What a database names."""

    def __init__(self, *digests: str) -> None:
        self.names = set(digests)

    def digests(self) -> frozenset[str]:
        return frozenset(self.names)


def run(files: StoreFiles, named: object, day: float, delete: bool = True) -> Collected:
    return collect(files, named, START + timedelta(days=day), 7 * DAY_S, delete)  # type: ignore[arg-type]


def digests(found: tuple[StoredFile, ...]) -> list[str | None]:
    return [file.digest for file in found]


def test_garbage_is_marked_then_removed_after_its_grace(
    store: ArtifactStore, files: StoreFiles
) -> None:
    kept, orphan = store.put_bytes(b"kept").digest, store.put_bytes(ORPHAN).digest
    first = run(files, Named(kept), 0)
    assert (first.num_files, first.num_named, digests(first.waiting)) == (2, 1, [orphan])
    assert run(files, Named(kept), 6.9).removed == ()
    assert store.exists(orphan)
    done = run(files, Named(kept), 7)
    assert digests(done.removed) == [orphan]
    assert (store.exists(orphan), store.exists(kept)) == (False, True)
    assert read_marks(files) == {}


def test_without_delete_nothing_is_removed(store: ArtifactStore, files: StoreFiles) -> None:
    orphan = store.put_bytes(ORPHAN).digest
    run(files, Named(), 0, delete=False)
    seen = run(files, Named(), 8, delete=False)
    assert (digests(seen.due), seen.removed) == ([orphan], ())
    assert store.exists(orphan)


def test_grace_begins_anew_when_a_name_comes_and_goes(
    store: ArtifactStore, files: StoreFiles
) -> None:
    orphan = store.put_bytes(ORPHAN).digest
    run(files, Named(), 0)
    run(files, Named(orphan), 5)
    assert digests(run(files, Named(), 8).waiting) == [orphan]
    assert digests(run(files, Named(), 15).removed) == [orphan]


def test_a_put_of_the_same_content_begins_the_grace_anew(
    store: ArtifactStore, files: StoreFiles
) -> None:
    orphan = store.put_bytes(ORPHAN).digest
    run(files, Named(), 0)
    store.put_bytes(ORPHAN)
    assert digests(run(files, Named(), 8).waiting) == [orphan]


class PutsBetween(StoreFiles):
    """A put comes after the collection has looked and before it removes."""

    def __init__(self, store: ArtifactStore) -> None:
        super().__init__(store.url)
        self._store = store

    def remove_unchanged(self, file: StoredFile) -> bool:
        self._store.put_bytes(ORPHAN)
        return super().remove_unchanged(file)


def test_a_put_between_look_and_removal_keeps_the_artifact(store: ArtifactStore) -> None:
    orphan = store.put_bytes(ORPHAN).digest
    files = PutsBetween(store)
    run(files, Named(), 0)
    done = run(files, Named(), 8)
    assert (done.removed, digests(done.spared)) == ((), [orphan])
    assert store.get_bytes(orphan) == ORPHAN


def test_a_put_at_the_instant_of_removal_finds_it_or_writes_it(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The put comes while the file is out of its place."""
    files, rename = StoreFiles(store.url), Path.rename
    orphan = store.put_bytes(ORPHAN).digest
    (file,) = files.list()

    def rename_then_put(self: Path, target: Path) -> Path:
        moved = rename(self, target)
        monkeypatch.undo()
        store.put_bytes(ORPHAN)
        return moved

    monkeypatch.setattr(Path, "rename", rename_then_put)
    files.remove_unchanged(file)
    assert store.get_bytes(orphan) == ORPHAN
    assert [each.digest for each in files.list()] == [orphan]


def test_puts_beside_removals_never_lose_an_artifact(
    store: ArtifactStore, files: StoreFiles
) -> None:
    """What a put returned from is there, however two removals at once fell around it."""
    with ThreadPoolExecutor(3) as pool:
        for _ in range(100):
            store.put_bytes(ORPHAN)
            (file,) = files.list()
            removals = [pool.submit(files.remove_unchanged, file) for _ in range(2)]
            put = pool.submit(store.put_bytes, ORPHAN)
            assert sum(each.result() for each in removals) <= 1
            assert store.get_bytes(put.result().digest) == ORPHAN
    assert len(list(files.list())) == 1


def test_leftovers_of_killed_writers_go_after_the_grace(
    store: ArtifactStore, files: StoreFiles
) -> None:
    store.put_bytes(b"kept")
    part = Path(store.url) / "sha256" / "ab" / f".{'ab' * 32}.{'0' * 32}.part"
    part.parent.mkdir(exist_ok=True)
    part.write_bytes(b"half")
    run(files, Named(digest_bytes(b"kept")), 0)
    part.write_bytes(b"half and more")  # its writer lives
    os.utime(part, ns=(1, 1))
    assert run(files, Named(digest_bytes(b"kept")), 8).removed == ()
    done = run(files, Named(digest_bytes(b"kept")), 16)
    assert [file.name.rpartition("/")[2] for file in done.removed] == [part.name]
    assert store.exists(digest_bytes(b"kept"))


def test_what_is_no_artifact_is_never_touched(store: ArtifactStore, files: StoreFiles) -> None:
    strays = [
        Path(store.url) / name
        for name in ("README", "sha256/notes.txt", "sha256/ab/short", f"sha256/cd/{'ab' * 32}")
    ]
    for path in strays:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"somebody's")
    run(files, Named(), 0)
    assert run(files, Named(), 8).removed == ()
    assert all(path.read_bytes() == b"somebody's" for path in strays)


def test_a_link_out_of_the_store_is_not_followed(
    store: ArtifactStore, files: StoreFiles, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / ("ab" * 32)).write_bytes(b"precious")
    (Path(store.url) / "sha256").mkdir(parents=True)
    (Path(store.url) / "sha256" / "ab").symlink_to(outside)
    run(files, Named(), 0)
    assert run(files, Named(), 8).removed == ()
    assert (outside / ("ab" * 32)).read_bytes() == b"precious"


@pytest.mark.parametrize("note", [b"", b"{", b"[]", b"[1]", b'{"a": 1}', b'{"a": ["x", "y"]}'])
def test_marks_that_cannot_be_read_only_cost_time(
    store: ArtifactStore, files: StoreFiles, note: bytes
) -> None:
    orphan = store.put_bytes(ORPHAN).digest
    run(files, Named(), 0)
    files.write_note(NOTE, note)
    assert digests(run(files, Named(), 8).waiting) == [orphan]


def test_a_clock_that_went_back_makes_nothing_due(store: ArtifactStore, files: StoreFiles) -> None:
    orphan = store.put_bytes(ORPHAN).digest
    run(files, Named(), 100)
    assert digests(run(files, Named(), 0).waiting) == [orphan]
    assert digests(run(files, Named(), 6).waiting) == [orphan]


KILLED = """
import os, signal, sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from orchestrator.artifacts.store_files import StoreFiles
from orchestrator.upkeep.gc import collect
unlink, left = Path.unlink, [int(sys.argv[2])]
def die(self, **options):
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    unlink(self, **options)
Path.unlink = die
class Named:
    def digests(self):
        return frozenset(sys.argv[3:])
collect(StoreFiles(sys.argv[1]), Named(), datetime(2026, 1, 9, tzinfo=UTC), 7 * 86400, True)
"""


def test_killed_in_the_middle_nothing_named_is_lost_and_the_next_one_ends_it(
    store: ArtifactStore, files: StoreFiles
) -> None:
    kept = store.put_bytes(b"kept").digest
    orphans = [store.put_bytes(b"orphan %d" % index).digest for index in range(5)]
    run(files, Named(kept), 0)
    done = subprocess.run([sys.executable, "-c", KILLED, store.url, "3", kept])
    assert done.returncode == -signal.SIGKILL
    # The one it was at is out of its place, and neither lost nor for ever there.
    assert sum(store.exists(orphan) for orphan in orphans) == 2
    files.restore_doomed()
    assert sum(store.exists(orphan) for orphan in orphans) == 3
    assert len(run(files, Named(kept), 20).removed) == 3
    assert [each.digest for each in files.list()] == [kept]


def test_what_the_registry_names_stays_and_a_failed_jobs_orphan_goes(
    database: Database,
    registry: PromptRegistry,
    queue: JobQueue,
    store: ArtifactStore,
    files: StoreFiles,
    make_trained: MakeTrained,
    running: Callable[..., Lease],
) -> None:
    references = References(database)
    version = registry.register(make_trained())[0]
    registry.promote(PromptRef("color", 1), "production", "ann")
    checkpoint = store.put_bytes(b"checkpoint").digest
    queue.checkpoint(running("other"), checkpoint)
    orphan = store.put_bytes(ORPHAN).digest
    run(files, references, 0)
    assert digests(run(files, references, 8).removed) == [orphan]
    for artifact in version.artifacts.values():
        store.verify(artifact.digest)
    store.verify(checkpoint)


def test_a_short_grace_is_refused_while_jobs_run() -> None:
    check_grace(60, num_busy=0)
    check_grace(3600, num_busy=3)
    with pytest.raises(InvalidInput, match="3 jobs wait or run"):
        check_grace(60, num_busy=3)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["put", "name", "forget", "gc"]), st.integers(0, 3)), max_size=25
    )
)
def test_any_history_keeps_what_is_named_or_was_put_within_the_grace(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int]]
) -> None:
    store = ArtifactStore(str(tmp_path_factory.mktemp("store")))
    files, named = StoreFiles(store.url), Named()
    touched: dict[str, int] = {}
    for day, (verb, index) in enumerate(steps):
        data = b"%d" % index
        digest = digest_bytes(data)
        if verb == "put":
            store.put_bytes(data)
            touched[digest] = day
        elif verb == "name" and store.exists(digest):
            named.names.add(digest)
        elif verb == "forget":
            named.names.discard(digest)
        else:
            run(files, named, day)
        for digest in named.names | {each for each in touched if day - touched[each] < 7}:
            assert store.exists(digest)
