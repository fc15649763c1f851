from pathlib import Path

import pytest

from orchestrator.cli.train_view import TrainView, time_left
from orchestrator.domain.gang import TaskProgress
from orchestrator.scheduling.controller import Watch
from tests.cli.conftest import open_tutti
from tests.tiny import write_task


@pytest.mark.parametrize(
    ("step", "seconds", "expected"),
    [(0, 0.0, ""), (10, 10.0, "1:30"), (50, 10.0, "0:10"), (100, 10.0, "0:00"), (1, 60.0, "99:00")],
)
def test_the_time_left_is_at_the_pace_so_far(step: int, seconds: float, expected: str) -> None:
    assert time_left(TaskProgress("j", step, 100, seconds=seconds)) == expected


def test_nothing_is_known_before_the_first_word() -> None:
    assert time_left(None) == ""


def test_a_sweep_tells_how_many_trials_are_left(
    home: Path, tasks: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    sweep = {"over": {"training.steps": [4, 80]}}
    with open_tutti(home) as tutti:
        (submitted,) = tutti.submit([write_task(tasks, "swept", sweep=sweep)])
    job = submitted.job
    stage = "3 of 16 trials left"
    progress = TaskProgress(job.id, 20, 80, loss=0.5, best=0.81, seconds=9.0, stage=stage)
    with TrainView(home / "logs") as view:
        view.show([job], Watch(progress={job.id: progress}))
    told = capfd.readouterr().err
    assert "swept: step 20/80 loss 0.500 best 0.810, 3 of 16 trials left\n" in told
