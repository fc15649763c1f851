"""MLflow gets every version and alias once, in order, however often it was away. Real MLflow."""

import json
import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.artifacts.artifact_store import ArtifactStore
from orchestrator.domain.prompt_version import PromptRef, PromptVersion, TrainedPrompt
from orchestrator.registry.database import Database
from orchestrator.registry.leadership import MLFLOW, Leadership, Turn
from orchestrator.registry.outbox import Outbox
from orchestrator.registry.prompt_registry import PromptRegistry
from orchestrator.tracking.mlflow_client import open_client
from orchestrator.tracking.mlflow_mirror import Delivery, MlflowMirror
from tests.orchestrator.tracking.memory_registry import NUM_STEPS, MemoryOutbox, MemoryRegistry

Make = Callable[..., PromptVersion]
MakeMirror = Callable[[str], MlflowMirror]
TASK = "country-continent"
NOWHERE = "http://127.0.0.1:9"


@pytest.fixture
def client(tracking_uri: str) -> Any:
    return open_client(tracking_uri)


def all_runs(client: Any) -> list[Any]:
    experiment = client.get_experiment_by_name("tutti")
    return list(client.search_runs([experiment.experiment_id]))


def test_a_version_becomes_a_finished_run(
    mirror: MlflowMirror, make_version: Make, client: Any, artifacts: ArtifactStore
) -> None:
    version = make_version()
    assert mirror.deliver() == Delivery(num_delivered=1, num_pending=0)
    (run,) = all_runs(client)
    assert (run.info.run_name, run.info.status) == (version.ref, "FINISHED")
    assert run.info.end_time - run.info.start_time == 30_000
    assert run.data.tags["tutti.digest"] == version.digest
    assert run.data.tags["tutti.base"] == "smollm2-135m"
    assert run.data.params["encoder.hidden_size"] == "128"
    assert run.data.params["candidates"] == '["Asia", "Europe"]'
    assert run.data.metrics["accuracy"] == 0.776
    losses = client.get_metric_history(run.info.run_id, "training/loss")
    assert [point.step for point in losses] == list(range(1, NUM_STEPS + 1))
    assert len(client.get_metric_history(run.info.run_id, "training/eval_accuracy")) == 4


def test_the_run_has_the_weights_and_the_picture(
    mirror: MlflowMirror,
    make_version: Make,
    registry: MemoryRegistry,
    artifacts: ArtifactStore,
    client: Any,
) -> None:
    version = make_version()
    mirror.deliver()
    delivered = registry.versions[TASK, 1]
    picture = Path(mirror.picture(delivered) or "")
    assert picture.read_bytes().startswith(b"\x89PNG")
    folder = picture.parent
    assert sorted(file.name for file in folder.iterdir()) == [
        *("encoder.safetensors", "learning-curve.png"),
        *("prompt_embeddings.safetensors", "version.json"),
    ]
    stored = artifacts.get_bytes(version.artifacts["encoder"].digest)
    assert (folder / "encoder.safetensors").read_bytes() == stored
    told = json.loads((folder / "version.json").read_text())
    assert (told["digest"], told["number"]) == (version.digest, 1)
    assert told["lineage"]["base_fingerprint"] == "f" * 64
    assert mirror.picture(version) is None


def test_a_version_becomes_a_model_version_and_is_linked(
    mirror: MlflowMirror, make_version: Make, registry: MemoryRegistry, client: Any
) -> None:
    for number in (1, 2):
        make_version(number=number)
    mirror.deliver()
    for number in (1, 2):
        linked = registry.versions[TASK, number]
        model_version = client.get_model_version(TASK, linked.model_version)
        assert model_version.run_id == linked.run_id
        assert model_version.tags["tutti.ref"] == f"{TASK}@{number}"
        assert "accuracy 0.776" in model_version.description


def test_aliases_move(
    mirror: MlflowMirror, make_version: Make, outbox: MemoryOutbox, client: Any
) -> None:
    make_version(number=1)
    outbox.post("alias_moved", task=TASK, alias="production", number=1)
    make_version(number=2)
    outbox.post("alias_moved", task=TASK, alias="production", number=2)
    outbox.post("alias_moved", task=TASK, alias="canary", number=1)
    assert mirror.deliver() == Delivery(5, 0)
    for alias, number in {"production": 2, "canary": 1}.items():
        target = client.get_model_version_by_alias(TASK, alias)
        assert target.tags["tutti.ref"] == f"{TASK}@{number}"


@pytest.mark.parametrize("alias", ["production", "eu.production"])
def test_an_alias_is_taken_away_in_its_turn_and_once(
    mirror: MlflowMirror, make_version: Make, outbox: MemoryOutbox, client: Any, alias: str
) -> None:
    make_version()
    outbox.post("alias_moved", task=TASK, alias=alias, number=1)
    outbox.post("alias_removed", task=TASK, alias=alias)
    outbox.post("alias_removed", task=TASK, alias=alias)  # its answer was lost
    outbox.post("alias_moved", task=TASK, alias="canary", number=1)
    assert mirror.deliver() == Delivery(5, 0)
    model = client.get_registered_model(TASK)
    assert list(model.aliases) == ["canary"]
    assert not [tag for tag in model.tags if tag.startswith("tutti.alias")]


@pytest.mark.parametrize("alias", ["production", "eu.production"])
def test_an_alias_of_a_model_that_is_gone_is_taken_away(
    mirror: MlflowMirror, outbox: MemoryOutbox, alias: str
) -> None:
    outbox.post("alias_removed", task=TASK, alias=alias)
    assert mirror.deliver() == Delivery(1, 0)


@pytest.mark.parametrize("alias", ["eu.production", "latest", "v2"])
def test_an_alias_mlflow_cannot_have_becomes_a_tag(
    mirror: MlflowMirror, make_version: Make, outbox: MemoryOutbox, client: Any, alias: str
) -> None:
    make_version()
    outbox.post("alias_moved", task=TASK, alias=alias, number=1)
    assert mirror.deliver().error is None
    assert client.get_registered_model(TASK).tags[f"tutti.alias.{alias}"] == f"{TASK}@1"


def test_delivering_twice_makes_nothing_twice(
    make_mirror: MakeMirror,
    tracking_uri: str,
    make_version: Make,
    outbox: MemoryOutbox,
    client: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_version()
    first = make_mirror(tracking_uri)
    monkeypatch.setattr(outbox, "link", lambda *names: 1 / 0)
    assert "division" in str(first.deliver().error)
    monkeypatch.undo()
    again = make_mirror(tracking_uri)
    assert again.deliver() == Delivery(1, 0)
    assert again.deliver() == Delivery(0, 0)
    outbox.post("version_registered", task=TASK, number=1)
    assert again.deliver() == Delivery(1, 0)
    assert len(all_runs(client)) == 1
    assert len(client.search_model_versions(f"name = '{TASK}'")) == 1


def test_a_run_left_half_filled_is_completed(
    make_mirror: MakeMirror,
    tracking_uri: str,
    make_version: Make,
    client: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_version()
    mirror = make_mirror(tracking_uri)
    monkeypatch.setattr(type(client), "log_artifacts", lambda *given: 1 / 0)
    assert mirror.deliver().num_pending == 1
    monkeypatch.undo()
    assert mirror.deliver() == Delivery(1, 0)
    (run,) = all_runs(client)
    assert run.info.status == "FINISHED"
    losses = client.get_metric_history(run.info.run_id, "training/loss")
    assert len(losses) == NUM_STEPS


def test_mlflow_away_leaves_everything_for_later_in_order(
    make_mirror: MakeMirror,
    tracking_uri: str,
    make_version: Make,
    outbox: MemoryOutbox,
    client: Any,
) -> None:
    make_version(number=1)
    outbox.post("alias_moved", task=TASK, alias="production", number=1)
    make_version(number=2)
    away = make_mirror(NOWHERE)
    started = time.monotonic()
    delivery = away.deliver()
    assert time.monotonic() - started < 30
    assert (delivery.num_delivered, delivery.num_pending) == (0, 3)
    assert delivery.error == f"MLflow at {NOWHERE}: Connection refused"
    assert [item.attempts for item in outbox.items] == [1, 0, 0]
    assert outbox.items[0].last_error == delivery.error
    assert away.ping() is not None
    assert make_mirror(tracking_uri).deliver() == Delivery(3, 0)
    assert client.get_model_version_by_alias(TASK, "production").version == 1


@pytest.mark.parametrize("place", ["file/mlflow.db", "folder", "file"])
def test_an_mlflow_database_that_cannot_be_opened(
    make_mirror: MakeMirror, make_version: Make, tmp_path: Path, place: str
) -> None:
    make_version()
    (tmp_path / "file").write_text("this is no database, and no folder either" * 100)
    (tmp_path / "folder").mkdir()
    started = time.monotonic()
    mirror = make_mirror(f"sqlite:///{tmp_path}/{place}")
    delivery = mirror.deliver()
    assert time.monotonic() - started < 15
    assert (delivery.num_delivered, delivery.num_pending) == (0, 1)
    assert str(tmp_path / place) in str(delivery.error)
    assert mirror.ping() is not None


def test_a_lost_artifact_holds_up_its_own_task_only(
    mirror: MlflowMirror,
    make_version: Make,
    outbox: MemoryOutbox,
    artifacts: ArtifactStore,
    client: Any,
) -> None:
    lost = make_version("lost").artifacts["encoder"].digest
    outbox.post("alias_moved", task="lost", alias="production", number=1)
    make_version("kept")
    path = Path(artifacts.url) / "sha256" / lost[:2] / lost
    data = path.read_bytes()
    path.unlink()
    delivery = mirror.deliver()
    assert (delivery.num_delivered, delivery.num_pending) == (1, 2)
    assert "version_registered of lost" in str(delivery.error)
    assert "is missing from the store" in str(delivery.error)
    artifacts.put_bytes(data)
    assert mirror.deliver() == Delivery(2, 0)
    assert client.get_model_version_by_alias("lost", "production").version == 1


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("curve", b"not JSON"),
        ("curve", b"[1]"),
        ("curve", b'{"loss": [[1, "x"]]}'),
        ("curve", b'{"loss": 3}'),
        ("sweep", b"{}"),
        ("sweep", b"null"),
        ("sweep", b'{"metric": "accuracy", "trials": [{}]}'),
    ],
)
def test_an_artifact_of_nonsense_holds_up_its_own_task_only(
    mirror: MlflowMirror,
    make_version: Make,
    registry: MemoryRegistry,
    artifacts: ArtifactStore,
    name: str,
    content: bytes,
) -> None:
    version = make_version("odd")
    files = {**version.artifacts, name: artifacts.put_bytes(content)}
    registry.versions["odd", 1] = replace(version, artifacts=files)
    make_version("kept")
    delivery = mirror.deliver()
    assert (delivery.num_delivered, delivery.num_pending) == (1, 1)
    assert f"version_registered of odd: the artifact `{name}` of odd@1 holds no" in str(
        delivery.error
    )
    registry.versions["odd", 1] = version
    assert mirror.deliver() == Delivery(1, 0)


def test_the_real_registry_is_mirrored(
    tmp_path: Path,
    tracking_uri: str,
    artifacts: ArtifactStore,
    make_trained: Callable[[str, int], TrainedPrompt],
    client: Any,
) -> None:
    database = Database.open(f"sqlite:///{tmp_path}/tutti.db")
    registry, outbox = PromptRegistry(database), Outbox(database)
    for seed in (1, 2):
        registry.register(make_trained(TASK, seed))
    registry.promote(PromptRef(TASK, 2), "production", actor="test")
    mirror = MlflowMirror(tracking_uri, outbox, registry, artifacts, artifact_root=tmp_path / "ml")
    assert mirror.deliver() == Delivery(3, 0)
    version = registry.resolve(PromptRef(TASK, "production"))
    target = client.get_model_version_by_alias(TASK, "production")
    assert (str(target.version), target.run_id) == (version.model_version, version.run_id)
    assert Path(mirror.picture(version) or "").is_file()
    database.close()


def test_processes_that_share_a_server_do_not_deliver_at_once(
    tmp_path: Path,
    artifacts: ArtifactStore,
    make_trained: Callable[[str, int], TrainedPrompt],
) -> None:
    database = Database.open(f"sqlite:///{tmp_path}/tutti.db")
    registry, outbox = PromptRegistry(database), Outbox(database)
    registry.register(make_trained(TASK, 1))
    mine, other = (Turn(Leadership(database, MLFLOW), h, lambda holder: False) for h in "ab")
    mirror = MlflowMirror(NOWHERE, outbox, registry, artifacts, turn=mine)
    assert other.take()
    assert mirror.deliver() == Delivery(0, 1)
    other.end()
    assert mirror.deliver().error is not None  # it tried
    assert other.take()
    database.close()


def test_files_never_land_in_the_working_folder(
    make_version: Make,
    tracking_uri: str,
    outbox: MemoryOutbox,
    registry: MemoryRegistry,
    artifacts: ArtifactStore,
) -> None:
    make_version()
    mirror = MlflowMirror(tracking_uri, outbox, registry, artifacts)  # type: ignore[arg-type]
    assert "needs an artifact_root" in str(mirror.deliver().error)


def test_an_unknown_kind_of_item_stays(
    mirror: MlflowMirror, make_version: Make, outbox: MemoryOutbox
) -> None:
    make_version()
    outbox.post("from_the_future", task=TASK, number=1)
    delivery = mirror.deliver()
    assert (delivery.num_delivered, delivery.num_pending) == (1, 1)
    assert "unknown kind 'from_the_future'" in str(delivery.error)


def test_nothing_pending_does_not_touch_mlflow(make_mirror: MakeMirror) -> None:
    assert make_mirror(NOWHERE).deliver() == Delivery(0, 0)


def test_a_password_in_the_address_is_not_shown(
    make_mirror: MakeMirror, make_version: Make
) -> None:
    make_version()
    mirror = make_mirror("http://user:secret@127.0.0.1:9")
    assert "secret" not in str(mirror.deliver().error)
    assert "secret" not in str(mirror.ping())


def test_ping_is_none_when_mlflow_answers(mirror: MlflowMirror) -> None:
    assert mirror.ping() is None


SILENT = """
import sys
sys.path.insert(0, sys.argv[1])
from orchestrator.tracking.mlflow_mirror import MlflowMirror
assert "mlflow" not in sys.modules and "matplotlib" not in sys.modules
assert MlflowMirror(sys.argv[2], None, None, None).ping() is None
"""


def test_a_first_run_prints_nothing(tmp_path: Path) -> None:
    tracking_uri = f"sqlite:///{tmp_path}/new/mlflow.db"
    clean = {name: value for name, value in os.environ.items() if "MLFLOW" not in name}
    done = subprocess.run(
        [sys.executable, "-c", SILENT, str(Path.cwd()), tracking_uri],
        capture_output=True,
        text=True,
        env=clean,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_weights_in_mlflow_can_be_read_by_others(
    mirror: MlflowMirror, make_version: Make, registry: MemoryRegistry
) -> None:
    make_version()
    mirror.deliver()
    folder = Path(mirror.picture(registry.versions[TASK, 1]) or "").parent
    modes = {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()}
    assert len(modes) == 1
