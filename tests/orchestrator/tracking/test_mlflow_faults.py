"""Whatever the way to MLflow does to single connections, at the end MLflow has everything once. A
real MLflow server behind a proxy that refuses, resets in the middle, and holds requests back."""

import os
import random
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from deploy.local import mlflow_server, processes
from orchestrator.artifacts.artifact_store import ArtifactStore
from orchestrator.domain.errors import TuttiError
from orchestrator.domain.prompt_version import PromptRef
from orchestrator.registry.database import Database
from orchestrator.registry.leadership import MLFLOW, Leadership, Turn
from orchestrator.registry.outbox import Outbox
from orchestrator.registry.prompt_registry import PromptRegistry
from orchestrator.tracking.mlflow_client import open_client
from orchestrator.tracking.mlflow_mirror import MlflowMirror
from orchestrator.tracking.model_download import download_prompt
from orchestrator.tracking.reconcile import Reconciler, SyncReport
from tests.orchestrator.tracking.conftest import make_trained
from tests.orchestrator.tracking.memory_registry import tiny_curve
from tests.orchestrator.tracking.tcp_proxy import GOOD, REFUSED, Fate, Hold, TcpProxy

pytestmark = pytest.mark.faults
NUM_VERSIONS = 3
MAX_TRIES = 500
FILES = ("encoder.safetensors", "learning-curve.png", "prompt_embeddings.safetensors")


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """That of an MLflow server which is up."""
    folder = tmp_path_factory.mktemp("server")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    service = mlflow_server.service(folder / "data", port, os.environ)
    part = processes.spawn(service, folder / "log", folder, folder)
    processes.wait_ready(service, part, folder / "log", 0, timeout_s=120)
    yield port
    processes.stop(part, grace_s=10)


@pytest.fixture
def proxy(port: int) -> Iterator[TcpProxy]:
    with TcpProxy(port).running() as proxy:
        yield proxy


@dataclass
class World:
    """A registry whose MLflow is behind the proxy; `direct` is past it."""

    task: str
    registry: PromptRegistry
    outbox: Outbox
    mirror: MlflowMirror
    direct: Any

    @property
    def reconciler(self) -> Reconciler:
        return Reconciler(self.mirror, self.registry, self.outbox)

    def train(self, store: ArtifactStore) -> None:
        """Versions, each promoted to production as it comes, and a canary that stays behind."""
        for number in range(1, NUM_VERSIONS + 1):
            self.registry.register(make_trained(store, self.task, number))
            self.registry.promote(PromptRef(self.task, number), "production", "ann")
        self.registry.promote(PromptRef(self.task, 1), "canary", "ann")

    def deliver_all(self) -> int:
        """Deliver until nothing waits; return how often that failed."""
        for num_failures in range(MAX_TRIES):
            if self.mirror.deliver().num_pending == 0:
                return num_failures
        raise AssertionError(f"not delivered: {self.mirror.deliver().error}")

    def sync(self) -> SyncReport:
        return self.reconciler.sync("report", lambda *_: None, self.task)

    def runs(self) -> list[Any]:
        experiment = self.direct.get_experiment_by_name("tutti")
        of_task = f"tags.`tutti.ref` LIKE '{self.task}@%'"
        return list(self.direct.search_runs([experiment.experiment_id], of_task))

    def check_whole(self) -> None:
        """One finished run and one model version a version, every point once, aliases right."""
        models = self.direct.search_model_versions(f"name = '{self.task}'")
        assert len(self.runs()) == len(models) == NUM_VERSIONS
        for number in range(1, NUM_VERSIONS + 1):
            version = self.registry.resolve(PromptRef(self.task, number))
            run = self.direct.get_run(version.run_id)
            assert (run.info.status, run.data.tags["tutti.ref"]) == ("FINISHED", version.ref)
            for name, series in tiny_curve().items():
                points = self.direct.get_metric_history(version.run_id, f"training/{name}")
                assert [(point.step, point.value) for point in points] == series
            files = {file.path for file in self.direct.list_artifacts(version.run_id)}
            assert files == {*FILES, "version.json"}
            model = self.direct.get_model_version(self.task, version.model_version)
            assert model.run_id == version.run_id
        for alias, number in {"production": NUM_VERSIONS, "canary": 1}.items():
            found = self.direct.get_model_version_by_alias(self.task, alias)
            assert found.tags["tutti.ref"] == f"{self.task}@{number}"


@pytest.fixture
def make_world(
    tmp_path: Path, port: int, proxy: TcpProxy, artifacts: ArtifactStore
) -> Iterator[Callable[[str], World]]:
    database = Database.open(f"sqlite:///{tmp_path}/tutti.db")
    registry, outbox = PromptRegistry(database), Outbox(database)
    turn = Turn(Leadership(database, MLFLOW), "a", lambda holder: False)
    mirror = MlflowMirror(proxy.url, outbox, registry, artifacts, turn=turn)
    direct = open_client(f"http://127.0.0.1:{port}")
    yield lambda task: World(task, registry, outbox, mirror, direct)
    database.close()


def random_fates(seed: int) -> Callable[[], Fate]:
    """One connection in four lasts for a while; of the others every part may be lost."""
    dice = random.Random(seed)

    def next_fate() -> Fate:
        fates = (
            REFUSED,
            Fate(num_sent=dice.randrange(1, 5_000)),
            Fate(num_answered=dice.randrange(5_000)),
            Fate(num_answered=40_000),
        )
        return dice.choice(fates)

    return next_fate


@pytest.mark.parametrize("seed", range(2))
def test_an_mlflow_that_flaps_ends_with_everything_once_and_in_order(
    make_world: Callable[[str], World], proxy: TcpProxy, artifacts: ArtifactStore, seed: int
) -> None:
    world = make_world(f"flapping-{seed}")
    proxy.next_fate = lambda: REFUSED
    world.train(artifacts)  # MLflow is down for the whole training: the curves wait in the store
    for _ in range(3):
        assert world.mirror.deliver().num_delivered == 0
    proxy.next_fate = random_fates(seed)
    world.deliver_all()
    assert proxy.num_connections > 4
    proxy.next_fate = lambda: GOOD
    assert any(world.sync().is_settled for _ in range(MAX_TRIES))  # a bad connection may be left
    assert world.reconciler.find(world.task) == SyncReport(())
    world.check_whole()


def test_a_request_that_arrives_long_after_it_was_given_up_leaves_nothing_doubled(
    make_world: Callable[[str], World],
    proxy: TcpProxy,
    artifacts: ArtifactStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world, hold = make_world("slow"), Hold(b"/runs/create")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    proxy.next_fate = lambda: Fate(hold=hold)
    world.train(artifacts)
    delivery = world.mirror.deliver()
    assert (delivery.num_delivered, delivery.error is None) == (0, False)
    proxy.next_fate = lambda: GOOD
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")
    world.deliver_all()
    world.check_whole()
    hold.released.set()
    assert any(len(world.runs()) > NUM_VERSIONS for _ in range(MAX_TRIES)), "it never arrived"
    (repair,) = world.sync().repairs
    assert (repair.drift.kind, repair.drift.subject) == ("doubled", "slow@1")
    assert world.reconciler.find(world.task) == SyncReport(())
    world.check_whole()


@pytest.mark.parametrize(
    "request_of", ["runs/create", "model-versions/create", "registered-models/create", "alias"]
)
def test_a_request_whose_answer_is_lost_is_not_done_twice(
    make_world: Callable[[str], World], proxy: TcpProxy, artifacts: ArtifactStore, request_of: str
) -> None:
    world = make_world(f"lost-{request_of.replace('/', '-')}")
    fates = iter([Fate(loses=f"/{request_of}".encode())] * 2)
    proxy.next_fate = lambda: next(fates, GOOD)
    world.train(artifacts)
    assert world.deliver_all() > 0
    world.check_whole()


def test_a_prompt_is_downloaded_from_a_server_and_cut_answers_are_never_a_prompt(
    make_world: Callable[[str], World], proxy: TcpProxy, artifacts: ArtifactStore
) -> None:
    world = make_world("downloaded")
    world.train(artifacts)
    world.deliver_all()
    uri = f"models:/{world.task}@production"
    found = download_prompt(uri, proxy.url)
    assert (found.version.ref, found.weights) == (f"{world.task}@{NUM_VERSIONS}", b"embeddings")
    for num_answered in range(0, 2_000, 400):
        proxy.next_fate = lambda limit=num_answered: Fate(num_answered=limit)  # type: ignore[misc]
        with suppress(TuttiError):
            assert download_prompt(uri, proxy.url) == found
