"""What Ctrl-C does to a training. Another controller leads here, so that no Ray is started."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.cli.train import Training
from orchestrator.domain.errors import TuttiError
from orchestrator.job_watch import Sight
from orchestrator.sdk import Tutti
from tests.cli.conftest import Run, open_tutti
from tests.tiny import write_task


def train_interrupted(
    tutti: Tutti, job_id: str, on_interrupt: str, monkeypatch: pytest.MonkeyPatch
) -> Training:
    """A training whose loop looks twice; Ctrl-C comes between the looks."""

    def train_jobs(ids: list[str], on_change: Callable[[Sight], None]) -> list[object]:
        jobs = [tutti.job(each) for each in ids]
        on_change(Sight(jobs, leader="far:12:1"))
        os.kill(os.getpid(), signal.SIGINT)
        on_change(Sight(jobs, leader="far:12:1"))
        return [tutti.job(each) for each in ids]

    monkeypatch.setattr(tutti, "train_jobs", train_jobs)
    return Training(tutti, [job_id], on_interrupt)


@pytest.fixture
def job_id(run: Run, home: Path, tasks: Path) -> str:
    (job,) = run("submit", write_task(tasks, "one"), "--json").json
    return str(job["id"])


@pytest.mark.parametrize("on_interrupt", ["ask", "detach"])
def test_without_a_terminal_an_interrupt_detaches(
    home: Path, job_id: str, monkeypatch: pytest.MonkeyPatch, on_interrupt: str
) -> None:
    with open_tutti(home) as tutti:
        training = train_interrupted(tutti, job_id, on_interrupt, monkeypatch)
        with pytest.raises(TuttiError, match=r"the jobs stay with the controller at far \(pid 12"):
            training.run([])
        assert tutti.job(job_id).state == "queued"


def test_an_interrupt_can_cancel_the_jobs(
    home: Path, job_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_tutti(home) as tutti:
        (job,) = train_interrupted(tutti, job_id, "cancel", monkeypatch).run([])
        assert job.state == "cancelled"


def test_without_specs_and_jobs_there_is_nothing_to_train(run: Run, home: Path) -> None:
    done = run("train")
    assert (done.code, done.out) == (0, "")
    assert "nothing is queued" in done.err
