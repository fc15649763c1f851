"""Whatever hands do in MLflow is found; what it lost is made again, and aliases go one way or the
other. Real registry and MLflow, both on SQLite."""

import json
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from orchestrator.artifacts.artifact_store import ArtifactStore
from orchestrator.domain.errors import TuttiError
from orchestrator.domain.gate import Gate
from orchestrator.domain.prompt_version import PromptRef, PromptVersion
from orchestrator.registry.database import Database
from orchestrator.registry.leadership import MLFLOW, Leadership, Turn
from orchestrator.registry.outbox import Outbox
from orchestrator.registry.prompt_registry import PromptRegistry
from orchestrator.tracking.mlflow_client import open_client
from orchestrator.tracking.mlflow_mirror import MlflowMirror
from orchestrator.tracking.reconcile import Policy, Reconciler, SyncReport
from tests.orchestrator.tracking.conftest import make_trained

TASK = "country-continent"
PRODUCTION = f"{TASK}@production"


@dataclass
class World:
    """A registry with versions 1 and 2, 1 in production, and an MLflow that was told."""

    registry: PromptRegistry
    outbox: Outbox
    reconciler: Reconciler
    client: Any
    gate: Gate | None = None

    def sync(self, policy: Policy = "report") -> SyncReport:
        return self.reconciler.sync(policy, self.adopt)

    def adopt(self, ref: PromptRef, number: int | None, if_current: int) -> None:
        assert (self.registry.resolve(ref).number if if_current else 0) == if_current
        alias = str(ref.target)
        if number is None:
            self.registry.unset(TASK, alias, "mlflow", "by hand")
            return
        target = PromptRef(TASK, number)
        self.registry.promote(target, alias, "mlflow", "by hand", self.gate)

    def version(self, number: int) -> PromptVersion:
        return self.registry.resolve(PromptRef(TASK, number))

    def set_by_hand(self, alias: str, number: int) -> None:
        model_version = self.version(number).model_version
        self.client.set_registered_model_alias(TASK, alias, model_version)

    def in_mlflow(self, alias: str = "production") -> str:
        found = self.client.get_model_version_by_alias(TASK, alias)
        return str(found.tags["tutti.ref"])

    def aliases(self) -> dict[str, Any]:
        return dict(self.client.get_registered_model(TASK).aliases)

    def runs(self, view: int = 1) -> list[Any]:
        experiment = self.client.get_experiment_by_name("tutti")
        return list(self.client.search_runs([experiment.experiment_id], "", view))

    def check_whole(self) -> None:
        """One run and one model version a version, linked, with its files, and no more to do."""
        assert self.reconciler.find() == SyncReport(())
        assert len(self.runs()) == len(self.client.search_model_versions(f"name='{TASK}'")) == 2
        for number in (1, 2):
            version = self.version(number)
            model_version = self.client.get_model_version(TASK, version.model_version)
            assert model_version.run_id == version.run_id
            assert model_version.tags["tutti.digest"] == version.digest
            run = self.client.get_run(version.run_id)
            folder = Path(run.info.artifact_uri.removeprefix("file://"))
            assert json.loads((folder / "version.json").read_text())["digest"] == version.digest
            assert len(self.client.get_metric_history(version.run_id, "training/loss")) == 60


def open_world(home: Path) -> tuple[World, Database]:
    database = Database.open(f"sqlite:///{home}/tutti.db")
    registry, outbox = PromptRegistry(database), Outbox(database)
    uri = f"sqlite:///{home}/mlflow.db"
    store = ArtifactStore(str(home / "artifacts"))
    mirror = MlflowMirror(uri, outbox, registry, store, home / "mlartifacts")
    reconciler = Reconciler(mirror, registry, outbox)
    return World(registry, outbox, reconciler, open_client(uri)), database


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory, empty_mlflow: Path) -> Path:
    """The folder of a world, made once: drawing and logging take a second a version."""
    home = tmp_path_factory.mktemp("told")
    shutil.copyfile(empty_mlflow, home / "mlflow.db")
    world, database = open_world(home)
    for seed in (1, 2):
        world.registry.register(make_trained(ArtifactStore(str(home / "artifacts")), TASK, seed))
    world.registry.promote(PromptRef(TASK, 1), "production", actor="ann")
    assert world.sync() == SyncReport(())
    database.close()
    return home


@pytest.fixture
def world(tmp_path: Path, told: Path) -> Iterator[World]:
    """A copy of it; MLflow has absolute paths in its rows."""
    home = Path(shutil.copytree(told, tmp_path / "home"))
    rows = (
        ("experiments", "artifact_location"),
        ("runs", "artifact_uri"),
        ("model_versions", "source"),
    )
    with closing(sqlite3.connect(home / "mlflow.db")) as connection:
        for table, column in rows:
            connection.execute(
                f"UPDATE {table} SET {column} = replace({column}, ?, ?)", (str(told), str(home))
            )
        connection.commit()
    world, database = open_world(home)
    yield world
    database.close()


def kinds(report: SyncReport) -> list[tuple[str, str]]:
    return [(repair.drift.kind, repair.drift.subject) for repair in report.repairs]


def test_what_agrees_needs_nothing(world: World) -> None:
    for policy in ("report", "adopt", "revert"):
        assert world.sync(policy) == SyncReport(())
    world.check_whole()


def test_what_was_not_delivered_yet_is_told_and_is_no_drift(world: World) -> None:
    world.registry.promote(PromptRef(TASK, 2), "production", actor="ann")
    assert world.sync("adopt") == SyncReport(())
    assert world.in_mlflow() == f"{TASK}@2"
    assert len(world.registry.history(TASK)) == 2


def delete_run(world: World) -> None:
    world.client.delete_run(world.version(1).run_id)


def delete_model_version(world: World) -> None:
    world.client.delete_model_version(TASK, world.version(1).model_version)


def delete_model(world: World) -> None:
    world.client.delete_registered_model(TASK)


def rename_model(world: World) -> None:
    world.client.rename_registered_model(TASK, "something-else")


def delete_both(world: World) -> None:
    delete_run(world)
    delete_model_version(world)


def delete_experiment(world: World) -> None:
    world.client.delete_experiment(world.client.get_experiment_by_name("tutti").experiment_id)


def purge_run(world: World) -> None:
    """As `mlflow gc` does: the run is gone for good, and its model version leads nowhere."""
    import mlflow

    run = world.version(1).run_id
    world.client.delete_run(run)
    store = mlflow.tracking._tracking_service.utils._get_store(world.client.tracking_uri)
    store._hard_delete_run(run)


def link_nowhere(world: World) -> None:
    world.outbox.link((TASK, 1), "0" * 32, "77")


def double_run(world: World) -> None:
    """What an answer that was lost on the way would leave."""
    first = world.client.get_run(world.version(1).run_id)
    again = world.client.create_run(first.info.experiment_id, tags=dict(first.data.tags))
    model = world.client.get_model_version(TASK, world.version(1).model_version)
    made = world.client.create_model_version(
        TASK, model.source, again.info.run_id, tags=dict(model.tags)
    )
    world.client.set_registered_model_alias(TASK, "production", made.version)


@pytest.mark.parametrize(
    ("damage", "kind"),
    [
        (delete_run, "run"),
        (purge_run, "run"),
        (delete_model_version, "model_version"),
        (delete_both, "run"),
        (link_nowhere, "link"),
        (double_run, "doubled"),
    ],
)
def test_what_mlflow_lost_of_a_version_is_made_again_once(
    world: World, damage: Callable[[World], None], kind: str
) -> None:
    damage(world)
    found = world.reconciler.find()
    assert kinds(found) == [(kind, f"{TASK}@1")]
    assert not found.is_settled
    report = world.sync()
    assert (kinds(report), report.is_settled) == (kinds(found), True)
    assert world.in_mlflow() == f"{TASK}@1"
    world.check_whole()


@pytest.mark.parametrize("damage", [delete_model, rename_model, delete_experiment])
def test_a_whole_model_or_experiment_comes_back(
    world: World, damage: Callable[[World], None]
) -> None:
    damage(world)
    assert world.sync().is_settled
    assert world.in_mlflow() == f"{TASK}@1"
    world.check_whole()


def test_a_deleted_run_is_restored_under_its_id(world: World) -> None:
    before = world.version(1).run_id
    delete_run(world)
    world.sync()
    assert world.version(1).run_id == before


def test_a_deleted_model_version_does_not_hold_up_the_outbox(world: World) -> None:
    delete_model_version(world)
    world.registry.promote(PromptRef(TASK, 1), "canary", actor="ann")
    world.registry.promote(PromptRef(TASK, 2), "blue", actor="ann")
    assert world.sync().is_settled
    assert (world.in_mlflow("canary"), world.in_mlflow("blue")) == (f"{TASK}@1", f"{TASK}@2")
    world.check_whole()


def test_an_alias_moved_by_hand_is_reported_and_left(world: World) -> None:
    world.set_by_hand("production", 2)
    for _ in range(2):
        report = world.sync()
        (repair,) = report.repairs
        assert vars(repair.drift) == {
            "kind": "alias_moved",
            "subject": PRODUCTION,
            "registry": f"{TASK}@1",
            "mlflow": f"{TASK}@2",
        }
        assert "changed by hand in MLflow" in repair.error
        assert not report.is_settled
    assert world.in_mlflow() == f"{TASK}@2"
    assert world.version(1).aliases == ("production",)


def test_an_alias_moved_by_hand_is_set_back(world: World) -> None:
    world.set_by_hand("production", 2)
    world.set_by_hand("added", 2)
    report = world.sync("revert")
    assert kinds(report) == [("alias_added", f"{TASK}@added"), ("alias_moved", PRODUCTION)]
    assert report.is_settled
    assert list(world.aliases()) == ["production"]
    assert world.in_mlflow() == f"{TASK}@1"
    world.check_whole()


def test_an_alias_moved_by_hand_is_adopted_as_a_promotion(world: World) -> None:
    world.set_by_hand("production", 2)
    world.set_by_hand("added", 1)
    assert world.sync("adopt").is_settled
    assert [(move.alias, move.to_version, move.actor) for move in world.registry.history(TASK)] == [
        ("production", 2, "mlflow"),
        ("added", 1, "mlflow"),
        ("production", 1, "ann"),
    ]
    world.check_whole()


def test_adopting_goes_through_the_gate(world: World) -> None:
    world.set_by_hand("production", 2)
    world.gate = Gate.parse("accuracy > 0.9")
    (repair,) = world.sync("adopt").repairs
    assert (repair.done, world.version(2).aliases) == ("", ())
    assert "accuracy > 0.9" in repair.error


def test_an_alias_deleted_by_hand_is_reported_and_set_again_by_revert(world: World) -> None:
    world.client.delete_registered_model_alias(TASK, "production")
    report = world.sync()
    assert kinds(report) == [("alias_removed", PRODUCTION)]
    assert (report.is_settled, world.aliases()) == (False, {})
    assert world.sync("revert").is_settled
    assert world.in_mlflow() == f"{TASK}@1"
    world.check_whole()


def test_an_alias_deleted_by_hand_is_adopted_as_taken_away(world: World) -> None:
    world.client.delete_registered_model_alias(TASK, "production")
    (repair,) = world.sync("adopt").repairs
    assert repair.done == "taken away here"
    assert world.version(1).aliases == ()
    last = world.registry.history(TASK)[0]
    assert (last.from_version, last.to_version, last.actor) == (1, None, "mlflow")
    world.check_whole()


def test_an_alias_taken_away_here_is_gone_there_and_no_drift(world: World) -> None:
    world.registry.promote(PromptRef(TASK, 2), "eu.production", actor="ann")
    assert world.sync().is_settled
    for alias in ("production", "eu.production"):
        world.registry.unset(TASK, alias, actor="ann")
    assert world.sync("adopt") == SyncReport(())
    assert world.aliases() == {}
    assert "tutti.alias.eu.production" not in world.client.get_registered_model(TASK).tags
    world.set_by_hand("production", 1)
    assert kinds(world.sync("revert")) == [("alias_added", PRODUCTION)]
    assert world.aliases() == {}
    world.registry.rollback(TASK, "production", actor="ann")
    assert world.sync() == SyncReport(())
    assert world.in_mlflow() == f"{TASK}@1"


def test_an_alias_that_mlflow_cannot_have_is_kept_right_as_a_tag(world: World) -> None:
    world.registry.promote(PromptRef(TASK, 2), "eu.production", actor="ann")
    assert world.sync().is_settled
    world.client.set_registered_model_tag(TASK, "tutti.alias.eu.production", f"{TASK}@1")
    assert kinds(world.sync()) == [("alias_moved", f"{TASK}@eu.production")]
    assert world.sync("revert").is_settled
    tags = world.client.get_registered_model(TASK).tags
    assert tags["tutti.alias.eu.production"] == f"{TASK}@2"


def test_what_is_somebody_elses_is_left_alone(world: World) -> None:
    client, experiment = world.client, world.client.get_experiment_by_name("tutti")
    run = client.create_run(experiment.experiment_id, tags={"mine": "x"})
    foreign = client.create_model_version(TASK, run.info.artifact_uri, run.info.run_id)
    client.set_registered_model_alias(TASK, "theirs", foreign.version)
    client.set_registered_model_alias(TASK, "Champion", world.version(1).model_version)
    client.create_registered_model("their-model")
    for policy in ("report", "adopt", "revert"):
        assert world.sync(policy) == SyncReport(())
    assert {"theirs", "Champion", "production"} == set(world.aliases())
    client.set_registered_model_alias(TASK, "production", foreign.version)
    (repair,) = world.sync("adopt").repairs
    assert repair.error.startswith(f"model version {foreign.version}, which is not Tutti's cannot")
    assert world.sync("revert").is_settled
    assert world.in_mlflow() == f"{TASK}@1"


def test_a_version_whose_weights_are_lost_is_named_and_the_others_repaired(
    world: World, tmp_path: Path
) -> None:
    for number in (1, 2):
        world.client.delete_model_version(TASK, world.version(number).model_version)
    purge_run(world)
    digest = world.version(1).artifacts["encoder"].digest
    (tmp_path / "home" / "artifacts" / "sha256" / digest[:2] / digest).unlink()
    first, second = world.sync().repairs
    assert "is missing from the store" in first.error
    assert second.done.startswith("is run ")


def test_mlflow_away_says_so_and_changes_nothing(world: World) -> None:
    mirror = MlflowMirror("http://127.0.0.1:9", world.outbox, world.registry, None)  # type: ignore[arg-type]
    away = Reconciler(mirror, world.registry, world.outbox)
    report = away.sync("revert", world.adopt)
    assert report == SyncReport((), "MLflow at http://127.0.0.1:9: Connection refused")
    assert not report.is_settled


def test_another_process_that_tells_a_server_is_not_disturbed(
    world: World, tmp_path: Path, artifacts: ArtifactStore
) -> None:
    database = Database.open(f"sqlite:///{tmp_path}/home/tutti.db")
    mine, other = (Turn(Leadership(database, MLFLOW), h, lambda holder: False) for h in "ab")
    assert other.take()
    url = "http://127.0.0.1:9"
    mirror = MlflowMirror(url, world.outbox, world.registry, artifacts, turn=mine)
    with pytest.raises(TuttiError, match="another process is telling MLflow"):
        Reconciler(mirror, world.registry, world.outbox).find()
    database.close()
