import logging
import threading

import pytest

from orchestrator.controller_run import Chore


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
