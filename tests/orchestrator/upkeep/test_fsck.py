"""A check finds each way in which registry, artifacts, bases and MLflow can differ, and says so by
a stable kind; a repair mends what is safe and nothing else."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from sqlalchemy import text

from orchestrator.artifacts.artifact_store import ArtifactStore
from orchestrator.artifacts.store_files import StoreFiles
from orchestrator.bases.base_store import BaseStore
from orchestrator.domain.base_model import BaseModelRecord
from orchestrator.domain.digest import digest_json
from orchestrator.domain.job import Lease
from orchestrator.domain.prompt_version import PromptRef, PromptVersion
from orchestrator.registry.base_model_registry import BaseModelRegistry
from orchestrator.registry.consistency import Consistency, Link
from orchestrator.registry.database import Database
from orchestrator.registry.job_queue import JobQueue
from orchestrator.registry.outbox import Outbox
from orchestrator.registry.prompt_registry import PromptRegistry
from orchestrator.registry.references import References
from orchestrator.registry.repairs import Repairs
from orchestrator.tracking.lost_links import LostLink
from orchestrator.upkeep.artifact_check import ArtifactCheck
from orchestrator.upkeep.finding import REMEDIES, Finding
from orchestrator.upkeep.fsck import Fsck, MlflowLook, Report
from tests.orchestrator.upkeep.conftest import MakeTrained

Check = Callable[..., Report]


class Mlflow:
    """What MLflow answers."""

    def __init__(self) -> None:
        self.error: str | None = None
        self.gone: set[str] = set()

    def lost(self, links: Sequence[Link]) -> list[LostLink]:
        return [
            LostLink(link.task, link.number, f"its run {link.run_id} is gone")
            for link in links
            if link.run_id in self.gone
        ]


@pytest.fixture
def mlflow() -> Mlflow:
    return Mlflow()


@pytest.fixture
def check(
    database: Database, store: ArtifactStore, files: StoreFiles, mlflow: Mlflow, tmp_path: Path
) -> Check:
    def run(
        repair: bool = False, quick: bool = False, copies: ArtifactStore | None = None
    ) -> Report:
        fsck = Fsck(
            Consistency(database),
            Repairs(database),
            ArtifactCheck(store, files, References(database), copies),
            BaseModelRegistry(database),
            BaseStore(tmp_path / "bases"),
            MlflowLook(lambda: mlflow.error, mlflow.lost),
        )
        return fsck.run(repair, quick)

    return run


@pytest.fixture
def version(registry: PromptRegistry, outbox: Outbox, make_trained: MakeTrained) -> PromptVersion:
    """color@2 in production, after color@1; MLflow knows both."""
    for seed in range(2):
        made, _ = registry.register(make_trained(seed=seed))
        registry.promote(PromptRef("color", made.number), "production", "ann")
        outbox.link(made, f"run-{made.number}", str(made.number))
    for item in outbox.pending():
        outbox.delivered(item.id)
    return made


def kinds(report: Report) -> list[str]:
    return [finding.kind for finding in report.findings]


def only(report: Report) -> Finding:
    (finding,) = report.findings
    assert finding.remedy == REMEDIES[finding.kind]
    assert not report.is_clean or finding.is_mended
    return finding


def path_of(store: ArtifactStore, digest: str) -> Path:
    return Path(store.url) / "sha256" / digest[:2] / digest


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def past_triggers(database: Database, *statements: str) -> None:
    """What somebody with the database's file, or its superuser, may do."""
    with database.write() as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(text("SET LOCAL session_replication_role = replica"))
        else:
            query = "SELECT name FROM sqlite_master WHERE type = 'trigger'"
            for name in connection.execute(text(query)).scalars().all():
                connection.execute(text(f'DROP TRIGGER "{name}"'))
        for statement in statements:
            connection.execute(text(statement))


def test_a_registry_that_is_well_is_clean(check: Check, version: PromptVersion) -> None:
    for quick in (False, True):
        report = check(quick=quick)
        assert (report.findings, report.not_checked, report.is_clean) == ((), (), True)


def test_an_empty_registry_is_clean(check: Check) -> None:
    assert check().is_clean


@pytest.mark.parametrize("role", ["encoder", "prompt_embeddings", "curve"])
def test_one_flipped_bit_of_any_artifact_is_found(
    check: Check, store: ArtifactStore, version: PromptVersion, role: str
) -> None:
    digest = version.artifacts[role].digest
    flip(path_of(store, digest))
    finding = only(check())
    assert finding.kind == "artifact-altered"
    assert f"color@2 ({role})" in finding.where
    assert digest in finding.what
    assert check(quick=True).is_clean  # its size is right


def test_a_missing_or_cut_artifact_is_found_without_reading_any(
    check: Check, store: ArtifactStore, version: PromptVersion
) -> None:
    path_of(store, version.artifacts["encoder"].digest).unlink()
    curve = path_of(store, version.artifacts["curve"].digest)
    curve.write_bytes(curve.read_bytes()[:-1])
    assert sorted(kinds(check(quick=True))) == ["artifact-altered", "artifact-missing"]


def test_a_flipped_artifact_is_set_aside_and_the_next_put_heals_it(
    check: Check, store: ArtifactStore, files: StoreFiles, version: PromptVersion
) -> None:
    digest = version.artifacts["encoder"].digest
    whole = store.get_bytes(digest)
    flip(path_of(store, digest))
    finding = only(check(repair=True))
    assert finding.done.startswith("set aside as quarantine/")
    assert not finding.is_mended
    assert kinds(check()) == ["artifact-missing"]
    (aside,) = (Path(store.url) / "quarantine").iterdir()
    assert aside.read_bytes() != whole
    store.put_bytes(whole)
    assert check().is_clean


@pytest.mark.parametrize("harm", [flip, Path.unlink])
def test_a_copy_of_the_store_puts_back_what_was_lost(
    check: Check,
    store: ArtifactStore,
    version: PromptVersion,
    tmp_path: Path,
    harm: Callable[[Path], None],
) -> None:
    digest = version.artifacts["encoder"].digest
    copies = ArtifactStore(str(tmp_path / "copies"))
    copies.put_bytes(store.get_bytes(digest))
    harm(path_of(store, digest))
    assert only(check(repair=True, copies=copies)).is_mended
    assert check().is_clean


def test_a_harmed_copy_puts_nothing_back(
    check: Check, store: ArtifactStore, version: PromptVersion, tmp_path: Path
) -> None:
    digest = version.artifacts["encoder"].digest
    copies = ArtifactStore(str(tmp_path / "copies"))
    copies.put_bytes(store.get_bytes(digest))
    flip(path_of(copies, digest))
    path_of(store, digest).unlink()
    finding = only(check(repair=True, copies=copies))
    assert finding.done.startswith("not repaired: ")
    assert not store.exists(digest)


def test_a_jobs_lost_checkpoint_and_data_are_found(
    check: Check, store: ArtifactStore, queue: JobQueue, running: Callable[..., Lease]
) -> None:
    lease = running()
    queue.checkpoint(lease, store.put_bytes(b"checkpoint").digest)
    found = {finding.where.partition(" of ")[2] for finding in check().findings}
    assert found == {f"job {lease.job_id} ({split} data)" for split in ("train", "eval")}
    queue.checkpoint(lease, digest_json("never stored"))
    assert f"job {lease.job_id} (checkpoint)" in " ".join(f.where for f in check().findings)


def test_what_is_no_artifact_is_reported_and_left(
    check: Check, store: ArtifactStore, version: PromptVersion
) -> None:
    folder = path_of(store, version.digest).parent
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "notes.txt").write_bytes(b"mine")
    (folder / f".{'a' * 64}.{'0' * 32}.part").write_bytes(b"half")
    assert sorted(kinds(check(repair=True))) == ["leftover", "stray-file"]
    assert (folder / "notes.txt").read_bytes() == b"mine"


def test_half_a_removal_is_given_back(
    check: Check, store: ArtifactStore, version: PromptVersion
) -> None:
    path = path_of(store, version.artifacts["encoder"].digest)
    path.rename(path.with_name(f".{path.name}.{'0' * 32}.doomed"))
    assert sorted(kinds(check(repair=True))) == ["artifact-missing", "leftover"]
    assert check().is_clean


@pytest.mark.parametrize("harm", ["moved", "removed", "turned back"])
def test_an_alias_that_differs_from_the_audit_is_put_back(
    check: Check,
    database: Database,
    registry: PromptRegistry,
    outbox: Outbox,
    version: PromptVersion,
    harm: str,
) -> None:
    first = "SELECT id FROM prompt_versions WHERE number = 1"
    past_triggers(
        database,
        {
            "moved": f"UPDATE aliases SET version_id = ({first})",
            "removed": "DELETE FROM aliases",
            "turned back": f"UPDATE aliases SET version_id = ({first}), generation = 1",
        }[harm],
    )
    finding = only(check())
    assert (finding.kind, finding.where) == ("alias-differs", "color@production")
    assert only(check(repair=True)).is_mended
    assert registry.resolve(PromptRef("color", "production")).number == 2
    assert [item.kind for item in outbox.pending()] == ["alias_moved"]
    registry.promote(PromptRef("color", 1), "production", "ann")  # the next move follows on
    assert check().is_clean


def test_an_alias_that_was_taken_away_is_no_finding_and_taken_away_again(
    check: Check,
    database: Database,
    registry: PromptRegistry,
    outbox: Outbox,
    version: PromptVersion,
) -> None:
    registry.unset("color", "production", "ann")
    for item in outbox.pending():
        outbox.delivered(item.id)
    assert check().is_clean
    row = "SELECT 'color', 'production', id, 3, created_at FROM prompt_versions WHERE number = 2"
    past_triggers(database, f"INSERT INTO aliases {row}")
    finding = only(check())
    assert (finding.kind, finding.where) == ("alias-differs", "color@production")
    assert "its last promotion is move 3, which took it away" in finding.what
    assert only(check(repair=True)).is_mended
    assert [item.kind for item in outbox.pending()] == ["alias_removed"]
    assert check().is_clean


def test_an_alias_that_nobody_promoted_is_found_and_not_judged(
    check: Check, database: Database, version: PromptVersion
) -> None:
    past_triggers(database, "DELETE FROM promotions")
    assert only(check(repair=True)).kind == "alias-unaudited"


def test_a_gap_in_the_audit_is_found(
    check: Check, database: Database, registry: PromptRegistry, version: PromptVersion
) -> None:
    past_triggers(database, "DELETE FROM promotions WHERE generation = 1")
    assert only(check(repair=True)).kind == "audit-gap"


def test_a_forged_move_is_found(check: Check, database: Database, version: PromptVersion) -> None:
    past_triggers(database, "UPDATE promotions SET to_version = 9 WHERE generation = 1")
    found = check().findings
    assert {finding.kind for finding in found} == {"audit-gap"}
    assert [finding.where for finding in found] == [
        "color@production move 1",
        "color@production move 2",
    ]


def test_a_counter_that_fell_back_is_raised_before_a_number_is_given_twice(
    check: Check,
    database: Database,
    registry: PromptRegistry,
    make_trained: MakeTrained,
    version: PromptVersion,
) -> None:
    past_triggers(database, "UPDATE tasks SET last_version = 1")
    assert only(check()).kind == "counter-behind"
    assert only(check(repair=True)).is_mended
    assert registry.register(make_trained(seed=7))[0].number == 3


@pytest.mark.parametrize(
    "change",
    [
        'config = \'{"template": "other"}\'',
        "artifacts = '{}'",
        "lineage = '[]'",
        "base_fingerprint = 'other'",
        "job_id = 'a job that it was not made by'",
    ],
)
def test_a_row_that_is_not_what_its_digest_says_is_found(
    check: Check, database: Database, version: PromptVersion, change: str
) -> None:
    past_triggers(database, f"UPDATE prompt_versions SET {change} WHERE number = 2")
    assert "content-digest" in kinds(check(repair=True))
    assert not check().is_clean


def test_a_version_that_mlflow_was_never_told_of_is_told(
    check: Check, registry: PromptRegistry, outbox: Outbox, make_trained: MakeTrained
) -> None:
    registry.register(make_trained())
    assert check().is_clean  # it waits to be delivered
    for item in outbox.pending():
        outbox.delivered(item.id)
    assert only(check()).kind == "mlflow-untold"
    assert only(check(repair=True)).is_mended
    assert [item.payload for item in outbox.pending()] == [{"task": "color", "number": 1}]
    assert check().is_clean


def test_what_mlflow_lost_is_told_again_with_its_aliases(
    check: Check, mlflow: Mlflow, outbox: Outbox, registry: PromptRegistry, version: PromptVersion
) -> None:
    mlflow.gone = {"run-2"}
    finding = only(check(repair=True))
    assert (finding.kind, finding.where) == ("mlflow-link-lost", "color@2")
    assert [item.kind for item in outbox.pending()] == ["version_registered", "alias_moved"]
    assert registry.resolve(PromptRef("color", 2)).run_id is None
    assert check().is_clean


def test_mlflow_that_does_not_answer_is_said_not_to_be_checked(
    check: Check, mlflow: Mlflow, outbox: Outbox, version: PromptVersion
) -> None:
    mlflow.error, mlflow.gone = "MLflow at http://x: refused", {"run-2"}
    report = check(repair=True)
    assert (report.findings, report.not_checked) == ((), ("MLflow at http://x: refused",))
    assert outbox.pending() == []


def test_a_delivery_that_fails_for_ever_is_found_while_mlflow_answers(
    check: Check,
    mlflow: Mlflow,
    registry: PromptRegistry,
    outbox: Outbox,
    make_trained: MakeTrained,
) -> None:
    registry.register(make_trained())
    (item,) = outbox.pending()
    for _ in range(5):
        outbox.failed(item.id, "the artifact is lost")
    finding = only(check())
    assert finding.kind == "outbox-stuck"
    assert "the artifact is lost" in finding.what
    mlflow.error = "away"
    assert check().is_clean


def test_a_base_that_is_not_here_is_found(check: Check, database: Database) -> None:
    record = BaseModelRecord(
        "tiny",
        digest_json("b"),
        "/x",
        "s",
        {},
        "Llama",
        1,
        2,
        3,
        created_at=JobQueue(database).now(),
    )
    BaseModelRegistry(database).add(record)
    assert only(check(quick=True)).kind == "base-missing"


def test_an_altered_base_is_found(
    check: Check, database: Database, tmp_path: Path, base: BaseModelRecord
) -> None:
    BaseModelRegistry(database).add(base)
    assert check().is_clean
    flip(tmp_path / "bases" / base.fingerprint / "model.safetensors")
    assert only(check()).kind == "base-altered"


@pytest.fixture(scope="session")
def stored_base(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, BaseModelRecord]:
    from tests.tiny import make_tiny_base

    folder = tmp_path_factory.mktemp("base-store")
    source = make_tiny_base(tmp_path_factory.mktemp("tiny-base"))
    return folder, BaseStore(folder).add("tiny", source)


@pytest.fixture
def base(stored_base: tuple[Path, BaseModelRecord], tmp_path: Path) -> BaseModelRecord:
    folder, record = stored_base
    shutil.copytree(folder, tmp_path / "bases")
    return record


@pytest.mark.parametrize(
    "change", ["artifacts = '[1]'", "artifacts = '{\"a\": 1}'", "config = '{'", "artifacts = '{'"]
)
def test_a_row_that_cannot_be_read_is_a_finding_and_no_traceback(
    check: Check, database: Database, version: PromptVersion, dialect: str, change: str
) -> None:
    if dialect == "postgres" and change.endswith("'{'"):
        return  # its JSON columns refuse that
    past_triggers(database, f"UPDATE prompt_versions SET {change}")
    report = check(repair=True)
    assert {"database-damaged", "content-digest"} & set(kinds(report))
    assert not report.is_clean


def test_a_store_that_does_not_answer_is_a_finding(
    check: Check, version: PromptVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("orchestrator.artifacts.local_file.list_files", away)
    assert only(check()).kind == "artifact-unreadable"
