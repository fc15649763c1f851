"""A controller's eye on MLflow: what hands change there is said once and handled as the setting
says, and an MLflow that is away holds up nothing. Real MLflow on SQLite."""

import logging
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator import controller_run, mlflow_watch
from orchestrator.bootstrap import Parts
from orchestrator.controller_run import controller_up
from orchestrator.domain.errors import UnknownName
from orchestrator.domain.prompt_version import PromptRef
from orchestrator.mlflow_watch import LOOK_S, LOOK_SHARE, MlflowWatch
from orchestrator.registry import migrate
from orchestrator.settings import read_settings
from orchestrator.tracking.mlflow_client import open_client
from orchestrator.tracking.reconcile import SyncReport
from tests.orchestrator.tracking.conftest import make_trained

TASK = "country-continent"
PRODUCTION = PromptRef(TASK, "production")
MakeParts = Callable[..., Parts]


class Clock:
    """Time that goes by when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def make_parts(tmp_path: Path, empty_mlflow: Path) -> Iterator[MakeParts]:
    """Parts on one home, with versions 1 and 2, 1 in production, of which MLflow was told."""
    home = tmp_path / "home"
    home.mkdir()
    shutil.copyfile(empty_mlflow, home / "mlflow.db")
    made: list[Parts] = []

    def make(drift: str = "report", **given: str) -> Parts:
        environ = {"TUTTI_HOME": str(home), "TUTTI_MLFLOW_DRIFT": drift, **given}
        made.append(Parts(read_settings(environ, tmp_path)))
        return made[-1]

    parts = make()
    migrate.upgrade(parts.settings.database_url)
    for seed in (1, 2):
        parts.prompts.register(make_trained(parts.artifacts, TASK, seed))
    parts.prompts.promote(PromptRef(TASK, 1), "production", "ann")
    assert parts.mirror.deliver().error is None
    yield make
    for parts in made:
        parts.close()


@pytest.fixture
def client(make_parts: MakeParts) -> Any:
    return open_client(make_parts().settings.mlflow_tracking_uri)


@pytest.fixture(autouse=True)
def log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(logging.getLogger("tutti"), "propagate", True)
    caplog.set_level("INFO", "tutti.controller")
    return caplog


def said(log: pytest.LogCaptureFixture) -> list[tuple[str, str, str]]:
    """The findings in the log: what, of which alias, and what was done."""
    return [(r.what, r.of, getattr(r, "done", "")) for r in log.records if hasattr(r, "what")]


def set_by_hand(parts: Parts, client: Any, alias: str, number: int) -> None:
    model_version = parts.prompts.resolve(PromptRef(TASK, number)).model_version
    client.set_registered_model_alias(TASK, alias, model_version)


def look(watch: MlflowWatch, clock: Clock) -> str | None:
    clock.now += LOOK_S
    return watch.attend()


def test_a_finding_is_said_once_and_again_when_it_comes_back(
    make_parts: MakeParts, client: Any, clock: Clock, log: pytest.LogCaptureFixture
) -> None:
    parts = make_parts()
    watch = MlflowWatch(parts, clock)
    assert look(watch, clock) is None
    set_by_hand(parts, client, "production", 2)
    for _ in range(3):
        assert look(watch, clock) is None
    first = ("alias moved", str(PRODUCTION), "")
    assert said(log) == [first]
    assert "--adopt" in log.records[-1].error  # type: ignore[attr-defined]
    set_by_hand(parts, client, "canary", 2)
    look(watch, clock)
    second = ("alias added", f"{TASK}@canary", "")
    assert said(log) == [first, second]
    set_by_hand(parts, client, "production", 1)
    look(watch, clock)
    set_by_hand(parts, client, "production", 2)
    look(watch, clock)
    assert said(log) == [first, second, first]
    assert parts.prompts.resolve(PRODUCTION).number == 1


def test_what_was_changed_is_adopted(
    make_parts: MakeParts, client: Any, clock: Clock, log: pytest.LogCaptureFixture
) -> None:
    parts = make_parts("adopt")
    set_by_hand(parts, client, "production", 2)
    watch = MlflowWatch(parts, clock)
    assert look(watch, clock) is None
    assert said(log) == [("alias moved", str(PRODUCTION), f"{TASK}@2 promoted")]
    assert parts.prompts.history(TASK)[0].actor == f"mlflow, adopted by {parts.actor}"
    client.delete_registered_model_alias(TASK, "production")
    look(watch, clock)
    assert said(log)[1:] == [("alias removed", str(PRODUCTION), "taken away here")]
    with pytest.raises(UnknownName):
        parts.prompts.resolve(PRODUCTION)
    assert (look(watch, clock), len(said(log))) == (None, 2)


def test_what_was_changed_is_reverted_and_what_was_lost_made_again(
    make_parts: MakeParts, client: Any, clock: Clock, log: pytest.LogCaptureFixture
) -> None:
    parts = make_parts("revert")
    set_by_hand(parts, client, "production", 2)
    client.delete_run(parts.prompts.resolve(PromptRef(TASK, 2)).run_id)
    look(MlflowWatch(parts, clock), clock)
    assert [what for what, _, done in said(log) if done] == ["run", "alias moved"]
    found = client.get_model_version_by_alias(TASK, "production")
    assert found.tags["tutti.ref"] == f"{TASK}@1"


def test_between_two_looks_mlflow_is_only_told(
    make_parts: MakeParts, client: Any, clock: Clock, log: pytest.LogCaptureFixture
) -> None:
    parts = make_parts()
    watch = MlflowWatch(parts, clock)
    set_by_hand(parts, client, "production", 2)
    parts.prompts.promote(PromptRef(TASK, 2), "staging", "ann")
    clock.now += LOOK_S - 1
    assert watch.attend() is None
    assert (said(log), parts.outbox.num_pending()) == ([], 0)
    clock.now += 1
    watch.attend()
    assert len(said(log)) == 1


def test_a_long_look_is_taken_less_often(
    make_parts: MakeParts, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[float] = []

    def slow(parts: Parts) -> SyncReport:
        looks.append(clock.now)
        clock.now += LOOK_S
        return SyncReport(())

    monkeypatch.setattr(mlflow_watch, "sync_mlflow", slow)
    watch = MlflowWatch(make_parts(), clock)
    for _ in range(1 + LOOK_SHARE):
        look(watch, clock)
    assert len(looks) == 2


def test_an_mlflow_that_is_away_is_an_answer_until_it_was_looked_at(
    make_parts: MakeParts, client: Any, clock: Clock, log: pytest.LogCaptureFixture
) -> None:
    parts = make_parts()
    watch = MlflowWatch(parts, clock)
    set_by_hand(parts, client, "production", 2)
    look(watch, clock)
    away = make_parts(TUTTI_MLFLOW_TRACKING_URI="http://127.0.0.1:9")
    mirror, reconciler = parts.mirror, parts.reconciler
    parts.__dict__.update(mirror=away.mirror, reconciler=away.reconciler)
    answers = [look(watch, clock), watch.attend()]
    assert answers == ["MLflow at http://127.0.0.1:9: Connection refused"] * 2
    parts.__dict__.update(mirror=mirror, reconciler=reconciler)
    assert look(watch, clock) is None
    assert len(said(log)) == 1  # it was said before


def test_another_process_that_tells_mlflow_is_not_disturbed(
    make_parts: MakeParts, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = make_parts()
    watch = MlflowWatch(parts, clock)
    monkeypatch.setattr(parts.mirror, "take_turn", lambda: False)
    monkeypatch.setattr(mlflow_watch, "sync_mlflow", lambda parts: pytest.fail("it looked"))
    assert look(watch, clock) is None


def test_a_controller_looks_beside_its_steps(
    make_parts: MakeParts, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = make_parts("adopt")
    set_by_hand(parts, client, "production", 2)
    monkeypatch.setattr(mlflow_watch, "LOOK_S", 0.0)
    monkeypatch.setattr(controller_run, "DELIVER_S", 0.01)
    end = time.monotonic() + 60
    with controller_up(parts, "controller") as controller:
        while parts.prompts.resolve(PRODUCTION).number == 1:
            assert time.monotonic() < end
            controller.step()
        controller.step()
        assert controller.is_leading
