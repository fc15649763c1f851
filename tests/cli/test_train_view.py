from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from orchestrator.cli.train_table import draw_jobs, stage_of, time_left
from orchestrator.cli.train_view import TrainView
from orchestrator.domain.gang_record import GangRecord
from orchestrator.domain.job import Job, JobState
from orchestrator.job_watch import Sight
from tests.cli.conftest import open_tutti
from tests.tiny import write_task

NOW = datetime(2026, 1, 2, tzinfo=UTC)
GANG = GangRecord(
    name="gang-1",
    base_fingerprint="f" * 64,
    zero_stage=0,
    sharding="the base whole on every worker",
    holder="far:12:1",
    stage="loading the base",
    num_workers=0,
    num_jobs=1,
    is_drain_asked=False,
    step_s=0.0,
    tokens_per_s=0.0,
    error=None,
    started_at=NOW,
    seen_at=NOW,
)
PROGRESS = {
    "step": 20,
    "num_steps": 80,
    "loss": 0.5,
    "best": 0.81,
    "seconds": 9.0,
    "stage": "training",
}


@pytest.fixture
def job(home: Path, tasks: Path) -> Job:
    with open_tutti(home) as tutti:
        (submitted,) = tutti.submit([write_task(tasks, "colour")])
    return submitted.job


def tell(home: Path, capfd: pytest.CaptureFixture[str], *sights: Sight) -> list[str]:
    """What a view says that is not on a terminal, without the seconds."""
    capfd.readouterr()
    with open_tutti(home) as tutti, TrainView(tutti.prompt, home / "logs") as view:
        for sight in sights:
            view.show(sight)
    return [line.partition("] ")[2] for line in capfd.readouterr().err.splitlines()]


@pytest.mark.parametrize(
    ("step", "seconds", "expected"),
    [(0, 0.0, ""), (10, 10.0, "1:30"), (50, 10.0, "0:10"), (100, 10.0, "0:00"), (1, 60.0, "99:00")],
)
def test_the_time_left_is_at_the_pace_so_far(step: int, seconds: float, expected: str) -> None:
    assert time_left({"step": step, "num_steps": 100, "seconds": seconds}) == expected


def test_nothing_is_known_before_the_first_word() -> None:
    assert time_left({}) == ""


def test_each_state_is_told_once(home: Path, job: Job, capfd: pytest.CaptureFixture[str]) -> None:
    running = replace(job, state=JobState.RUNNING, gang="gang-1", progress=PROGRESS)
    up = replace(GANG, stage=None, num_workers=2, step_s=0.25)
    told = tell(
        home,
        capfd,
        Sight([replace(running, progress={})], [GANG], leader="far:12:1"),
        Sight([running], [up], leader="far:12:1"),
        Sight([running], [up], leader="far:12:1"),
        Sight([replace(running, state=JobState.FAILED, error="NaN")], [up], leader="far:12:1"),
    )
    assert told == [
        f"logs of Ray, DeepSpeed and the workers: {home / 'logs'}",
        "trained by the controller at far (pid 12)",
        "gang-1: the base whole on every worker",
        "gang-1: loading the base",
        "gang-1: 2 workers, 0.25 s a step",
        "colour: step 20/80 loss 0.500 best 0.810",
        "colour: failed: NaN",
    ]


def test_a_sweep_tells_how_many_trials_are_left(
    home: Path, job: Job, capfd: pytest.CaptureFixture[str]
) -> None:
    progress = {**PROGRESS, "stage": "3 of 16 trials left"}
    told = tell(home, capfd, Sight([replace(job, progress=progress)], leader="far:12:1"))
    assert told[-1] == "colour: step 20/80 loss 0.500 best 0.810, 3 of 16 trials left"


def test_jobs_that_nobody_trains_are_told_how_to(
    home: Path, job: Job, capfd: pytest.CaptureFixture[str]
) -> None:
    away = Sight([job], error="cannot be reached")
    told = tell(home, capfd, Sight([job]), away, away, Sight([job]))[1:]
    assert told == [
        "no controller is up: the jobs wait until one is started (`tutti controller`)",
        "the database is away, waiting: cannot be reached",
    ]


def test_the_table_shows_every_job_at_its_step(job: Job) -> None:
    from rich.console import Console

    running = replace(job, state=JobState.RUNNING, gang="gang-1", progress=PROGRESS)
    console = Console(width=120, record=True)
    sight = Sight([running, replace(job, id="other")], [GANG])
    console.print(draw_jobs(sight, 3.0))
    text = console.export_text()
    assert "training 2 tasks together · 3 s · loading the base" in text
    row = next(line for line in text.splitlines() if "20/80" in line)
    assert {"colour", "training", "0.500", "0.810", "0:27"} <= set(row.split())
    assert "queued" in text


def test_of_too_many_jobs_those_at_work_are_shown_first(job: Job) -> None:
    from rich.console import Console

    console = Console(width=140, record=True)
    many = [replace(job, id=str(index)) for index in range(99)]
    busy = replace(job, id="busy", state=JobState.RUNNING, progress=PROGRESS)
    console.print(draw_jobs(Sight([*many, busy]), 3.0))
    text = console.export_text()
    assert "0 have ended, 40" in text
    assert "20/80" in text


def test_a_gang_that_trains_tells_its_workers_and_step() -> None:
    up = replace(GANG, stage=None, num_workers=1)
    assert stage_of(up) == "1 worker"
    assert stage_of(replace(up, num_workers=2, step_s=0.5)) == "2 workers, 0.50 s a step"
