"""A registry comes back from its backup whole, on either kind of database, or not at all."""

import json
import shutil
import stat
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, text

from orchestrator.artifacts.artifact_store import ArtifactStore
from orchestrator.artifacts.store_files import StoreFiles
from orchestrator.domain.errors import IntegrityError, InvalidInput, SchemaMismatch, TuttiError
from orchestrator.domain.job import Lease
from orchestrator.domain.prompt_version import PromptRef
from orchestrator.registry import dump as dump_module
from orchestrator.registry import migrate
from orchestrator.registry.consistency import Consistency
from orchestrator.registry.database import Database
from orchestrator.registry.dump import open_dump, table_names
from orchestrator.registry.job_queue import JobQueue
from orchestrator.registry.outbox import Outbox
from orchestrator.registry.prompt_registry import PromptRegistry
from orchestrator.registry.references import References
from orchestrator.registry.tables import job_log, outbox
from orchestrator.upkeep.artifact_check import ArtifactCheck
from orchestrator.upkeep.backup import Moment, Saved, restore, save
from tests.orchestrator.upkeep.conftest import MakeTrained

HEAD = migrate.head()
MOMENT = Moment("here:/tutti.db", datetime(2026, 1, 1, tzinfo=UTC), HEAD, "0.1.0")
STRANGE = "'; DROP TABLE jobs; -- \N{SNOWMAN}\n\t\u2028\"\\ {}"
Make = Callable[..., Any]


@pytest.fixture
def busy(
    database: Database,
    registry: PromptRegistry,
    queue: JobQueue,
    store: ArtifactStore,
    make_trained: MakeTrained,
    running: Callable[..., Lease],
) -> Database:
    """A database with something in every corner."""
    for seed in range(3):
        trained = make_trained(seed=seed)
        data = store.put_bytes(b"rows %d" % seed).digest
        lineage = replace(trained.lineage, datasets={"train": data})
        registry.register(replace(trained, lineage=lineage))
        registry.promote(PromptRef("color", seed + 1), "production", "ann", STRANGE)
    lease = running("other")
    queue.checkpoint(lease, store.put_bytes(b"checkpoint").digest)
    queue.note([(lease.job_id, STRANGE)])
    Outbox(database).link(("color", 1), "run-1", "1")
    return database


@pytest.fixture
def elsewhere(sqlite_template: Path, tmp_path: Path) -> Iterator[Database]:
    path = shutil.copy(sqlite_template, tmp_path / "elsewhere.db")
    database = Database.open(f"sqlite:///{path}")
    yield database
    database.close()


@pytest.fixture
def other_store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(str(tmp_path / "other-store"))


def keep(busy: Database, store: ArtifactStore, tmp_path: Path) -> tuple[Path, Saved]:
    folder = tmp_path / "backup"
    return folder, save(busy, store, folder, MOMENT, with_artifacts=True)


def contents(database: Database) -> dict[str, list[str]]:
    with open_dump(database) as dump:
        return {name: list(dump.lines(name)) for name in table_names()}


def test_every_row_comes_back_the_same_from_either_database_to_sqlite(
    busy: Database,
    store: ArtifactStore,
    elsewhere: Database,
    other_store: ArtifactStore,
    tmp_path: Path,
) -> None:
    folder, saved = keep(busy, store, tmp_path)
    assert not saved.lost or {each.role for each in saved.lost} == {"train data", "eval data"}
    done = restore(elsewhere, other_store, folder, HEAD)
    assert (done.num_rows, done.num_artifacts) == (saved.num_rows, saved.num_artifacts)
    assert contents(elsewhere) == contents(busy)


def test_sqlite_comes_back_on_postgresql(
    elsewhere: Database,
    database: Database,
    make_trained: MakeTrained,
    store: ArtifactStore,
    other_store: ArtifactStore,
    tmp_path: Path,
) -> None:
    there = PromptRegistry(elsewhere)
    for seed in range(2):
        there.register(make_trained(seed=seed))
        there.promote(PromptRef("color", seed + 1), "production", "ann")
    folder, saved = keep(elsewhere, store, tmp_path)
    restore(database, other_store, folder, HEAD)
    assert contents(database) == contents(elsewhere)
    here = PromptRegistry(database)
    assert here.register(make_trained(seed=7))[0].number == 3
    here.promote(PromptRef("color", 3), "production", "ann")
    assert [move.generation for move in here.history("color")] == [3, 2, 1]
    assert saved.lost == ()


def test_what_is_restored_is_consistent_and_has_its_artifacts(
    busy: Database,
    store: ArtifactStore,
    elsewhere: Database,
    other_store: ArtifactStore,
    tmp_path: Path,
) -> None:
    folder, _ = keep(busy, store, tmp_path)
    restore(elsewhere, other_store, folder, HEAD)
    look = Consistency(elsewhere)
    assert [*look.damages(), *look.aliases(), *look.counters(), *look.contents()] == []
    check = ArtifactCheck(other_store, StoreFiles(other_store.url), References(elsewhere))
    before = ArtifactCheck(store, StoreFiles(store.url), References(busy))
    assert list(check.findings(quick=False)) == list(_at(before, store, other_store))
    for version in PromptRegistry(elsewhere).list():
        other_store.verify(version.lineage.datasets["train"])


def _at(check: ArtifactCheck, store: ArtifactStore, other: ArtifactStore) -> Iterator[Any]:
    for finding in check.findings(quick=False):
        yield replace(finding, what=finding.what.replace(store.url, other.url))


def test_numbers_that_were_given_are_never_given_again(
    busy: Database,
    store: ArtifactStore,
    other_store: ArtifactStore,
    elsewhere: Database,
    tmp_path: Path,
) -> None:
    """Also of rows that are gone: an archived log goes on where its last line was."""
    with busy.write() as connection:
        connection.execute(delete(job_log))
    with open_dump(busy) as dump:
        last = dump.counters()["job_log"]
    folder, _ = keep(busy, store, tmp_path)
    restore(elsewhere, other_store, folder, HEAD)
    queue = JobQueue(elsewhere)
    (job,) = queue.list()
    queue.note([(job.id, "more")])
    assert [line.number for line in queue.log(job.id)] == [last + 1]


def test_a_backup_is_of_one_moment(
    busy: Database,
    store: ArtifactStore,
    registry: PromptRegistry,
    make_trained: MakeTrained,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A version that is registered in the middle is in none of its tables."""
    lines = dump_module.OpenDump.lines

    def meanwhile(self: Any, name: str) -> Iterator[str]:
        if name == "prompt_versions":
            registry.register(make_trained("late", seed=9))
        return lines(self, name)

    monkeypatch.setattr(dump_module.OpenDump, "lines", meanwhile)
    folder, _ = keep(busy, store, tmp_path)
    assert registry.list("late")
    assert "late" not in (folder / "tasks.jsonl").read_text()
    assert '"late"' not in (folder / "prompt_versions.jsonl").read_text()
    assert '"late"' not in (folder / "outbox.jsonl").read_text()


def test_only_an_empty_database_is_restored_into(
    busy: Database, store: ArtifactStore, tmp_path: Path
) -> None:
    folder, _ = keep(busy, store, tmp_path)
    before = contents(busy)
    with pytest.raises(InvalidInput, match="the database is not empty"):
        restore(busy, store, folder, HEAD)
    assert contents(busy) == before


def test_a_lost_artifact_is_named_and_the_rest_is_saved(
    busy: Database, store: ArtifactStore, registry: PromptRegistry, tmp_path: Path
) -> None:
    version = registry.resolve(PromptRef("color", 1))
    store.discard(version.artifacts["encoder"].digest)
    _, saved = keep(busy, store, tmp_path)
    lost = {(each.by, each.role) for each in saved.lost}
    assert ("color@1", "encoder") in lost
    assert ("color@2", "encoder") not in lost


def test_a_folder_that_has_something_is_left_alone(
    database: Database, store: ArtifactStore, tmp_path: Path
) -> None:
    (tmp_path / "backup").mkdir()
    (tmp_path / "backup" / "mine").write_bytes(b"mine")
    with pytest.raises(InvalidInput, match="there is something already"):
        save(database, store, tmp_path / "backup", MOMENT, with_artifacts=False)
    with pytest.raises(InvalidInput, match="there is something already"):
        save(database, store, tmp_path / "backup" / "mine", MOMENT, with_artifacts=False)


# Restoring what is not a whole backup: one database is enough to see it refused


@pytest.fixture
def backup(
    sqlite_template: Path, store: ArtifactStore, make_trained: MakeTrained, tmp_path: Path
) -> Path:
    database = Database.open(f"sqlite:///{shutil.copy(sqlite_template, tmp_path / 'first.db')}")
    PromptRegistry(database).register(make_trained())
    folder = tmp_path / "backup"
    save(database, store, folder, MOMENT, with_artifacts=True)
    database.close()
    return folder


def refuse(
    database: Database, store: ArtifactStore, folder: Path, error: type[TuttiError], match: str
) -> None:
    with pytest.raises(error, match=match):
        restore(database, store, folder, HEAD)
    assert all(rows == [] for rows in contents(database).values())


def test_only_its_owner_may_read_a_backup(backup: Path) -> None:
    assert stat.S_IMODE(backup.stat().st_mode) == 0o700


def test_a_backup_that_was_not_ended_is_none(
    backup: Path, elsewhere: Database, other_store: ArtifactStore
) -> None:
    (backup / "manifest.json").unlink()
    refuse(elsewhere, other_store, backup, InvalidInput, "not a backup")
    refuse(elsewhere, other_store, backup / "nowhere", InvalidInput, "not a backup")


@pytest.mark.parametrize("harm", ["flip", "cut", "remove", "link", "add"])
def test_an_altered_table_is_refused(
    backup: Path, elsewhere: Database, other_store: ArtifactStore, harm: str, tmp_path: Path
) -> None:
    path = backup / "prompt_versions.jsonl"
    data = path.read_bytes()
    if harm == "flip":
        path.write_bytes(data.replace(b"accuracy", b"Accuracy", 1))
    elif harm == "cut":
        path.write_bytes(data[:-5])
    elif harm == "add":
        path.write_bytes(data + data)
    else:
        path.unlink()
        if harm == "link":
            path.symlink_to("/dev/zero")
    refuse(elsewhere, other_store, backup, IntegrityError, "prompt_versions.jsonl")


def test_an_altered_artifact_is_refused(
    backup: Path, elsewhere: Database, other_store: ArtifactStore
) -> None:
    path = next(each for each in (backup / "artifacts").rglob("*") if each.is_file())
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    refuse(elsewhere, other_store, backup, IntegrityError, "the bytes are not what")


def test_a_backup_of_another_schema_says_what_to_do(
    backup: Path, elsewhere: Database, other_store: ArtifactStore
) -> None:
    manifest = json.loads((backup / "manifest.json").read_bytes())
    manifest["revision"] = "0001"
    (backup / "manifest.json").write_text(json.dumps(manifest))
    refuse(elsewhere, other_store, backup, SchemaMismatch, "version 0.1.0")


@pytest.mark.parametrize(
    "change", [{"format": "x"}, {"tables": 1}, {"extra": 1}, {"counters": {"a": "b"}}]
)
def test_a_manifest_that_is_wrong_is_refused(
    backup: Path, elsewhere: Database, other_store: ArtifactStore, change: dict[str, Any]
) -> None:
    manifest = json.loads((backup / "manifest.json").read_bytes())
    (backup / "manifest.json").write_text(json.dumps({**manifest, **change}))
    refuse(elsewhere, other_store, backup, InvalidInput, "not a backup")


def test_a_row_that_does_not_fit_lets_none_in(
    backup: Path, elsewhere: Database, other_store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failure in the last table leaves nothing of the first."""
    load = dump_module._load_table

    def fail_at_outbox(connection: Any, table: Any, lines: Any) -> int:
        if table is outbox:
            raise InvalidInput("the disk is full")
        return load(connection, table, lines)

    monkeypatch.setattr(dump_module, "_load_table", fail_at_outbox)
    refuse(elsewhere, other_store, backup, InvalidInput, "the disk is full")
    with elsewhere.read() as connection:
        assert connection.execute(text("SELECT count(*) FROM tasks")).scalar_one() == 0
