import logging
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator import controller_run
from orchestrator.bootstrap import Parts
from orchestrator.controller_run import Chore, serve
from orchestrator.domain.errors import InvalidInput, SchemaMismatch
from orchestrator.registry.errors import DatabaseUnavailable
from orchestrator.settings import read_settings


def test_a_chore_is_done_once_more_at_the_end() -> None:
    done = threading.Event()

    def work() -> None:
        done.set()

    with Chore("telling", work, interval_s=3600):
        assert not done.is_set()
    assert done.is_set()


def test_a_chore_that_fails_is_told_once_and_tried_again(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("tutti"), "propagate", True)
    enough, calls = threading.Event(), []

    def work() -> str | None:
        calls.append(None)
        if len(calls) == 5:
            enough.set()
        if len(calls) > 2:
            raise ValueError("broken")
        return "MLflow is away"

    with caplog.at_level("WARNING", "tutti.controller"), Chore("telling", work, 0.001):
        assert enough.wait(10)
    assert [record.error for record in caplog.records] == ["MLflow is away", "ValueError: broken"]


AWAY = "postgresql://ann:secret@127.0.0.1:1/tutti"


@pytest.fixture
def parts_on(tmp_path: Path) -> Callable[[str], Parts]:
    def make(url: str) -> Parts:
        given = {"TUTTI_HOME": str(tmp_path), "TUTTI_DATABASE_URL": url}
        return Parts(read_settings(given, tmp_path))

    return make


def test_a_controller_waits_for_a_database_that_is_away_at_its_start(
    parts_on: Callable[[str], Parts], monkeypatch: pytest.MonkeyPatch
) -> None:
    stop, told = threading.Event(), []

    def tell(text: str, extra: dict[str, object]) -> None:
        told.append((text, extra["error"]))
        if len(told) == 2:
            stop.set()

    monkeypatch.setattr(controller_run, "RETRY_S", 0.001)
    monkeypatch.setattr(controller_run.logger, "error", tell)
    serve(parts_on(AWAY), stop)
    assert [text for text, _ in told] == ["the controller waits for the database"] * 2
    assert "127.0.0.1:1" in str(told[0][1])


def test_a_controller_that_ends_once_idle_does_not_wait_for_a_database(
    parts_on: Callable[[str], Parts],
) -> None:
    with pytest.raises(DatabaseUnavailable):
        serve(parts_on(AWAY), threading.Event(), once_idle=True)


def test_a_wrong_url_or_schema_ends_a_controller_at_once(
    parts_on: Callable[[str], Parts], tmp_path: Path
) -> None:
    with pytest.raises(InvalidInput):
        serve(parts_on("mysql://host/name"), threading.Event())
    (tmp_path / "other.db").write_text("no database at all, but long enough to be read as one" * 9)
    with pytest.raises((InvalidInput, SchemaMismatch)):
        serve(parts_on(f"sqlite:///{tmp_path / 'other.db'}"), threading.Event())
