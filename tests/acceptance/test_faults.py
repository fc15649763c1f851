"""Kills real processes on purpose, and looks at the database, the artifacts and MLflow after."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.conftest import TUTTI, Home
from tests.tiny import keeps_row_bits, write_task

pytestmark = [pytest.mark.ray, pytest.mark.faults, pytest.mark.timeout(600)]
LONG = {"steps": 400, "batch_size": 4, "learning_rate": 0.01, "seed": 1}


def start_training(home: Home, specs: list[Path]) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [str(TUTTI), "train", *map(str, specs)],
        env=home.env,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def wait_for(process: "subprocess.Popen[str]", pattern: str) -> list[str]:
    """Read its words until one line has `pattern`."""
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if re.search(pattern, line):
            return said
    raise AssertionError(f"never said {pattern!r}: {''.join(said)}")


def workers_of(home: Home) -> list[int]:
    """Process ids that write this home's worker logs."""
    pids = []
    for proc in Path("/proc").glob("[0-9]*"):
        try:
            target = str((proc / "fd/1").readlink())
        except OSError:
            continue
        if target.startswith(str(home.folder / "logs")) and "worker-" in target:
            pids.append(int(proc.name))
    return pids


def resumed(home: Home) -> str:
    """What the workers say of tasks that go on from a checkpoint."""
    logs = sorted(home.folder.glob("logs/*/worker-*.log"))
    text = "".join(log.read_text(errors="replace") for log in logs)
    return " ".join(line for line in text.splitlines() if "goes on after step" in line)


def leftovers(home: Home) -> set[str]:
    """Stored artifacts that neither a version nor a job's data set is."""
    versions = home.json("prompts", "list")
    known = {each["digest"] for v in versions for each in v["artifacts"].values()}
    known |= {digest for v in versions for digest in v["lineage"]["datasets"].values()}
    return {path.name for path in home.folder.glob("artifacts/sha256/*/*")} - known


def result_of(home: Home, task: str) -> Any:
    """What of a version must not depend on interruptions."""
    version = home.json("prompts", "show", f"{task}@1")
    return version["digest"], version["artifacts"]["encoder"]["digest"]


@pytest.fixture(scope="module")
def undisturbed(new_home: Any) -> dict[str, Any]:
    """The results of the same tasks when nothing happens."""
    home: Home = new_home("undisturbed")
    specs = [write_task(home.tasks, f"task-{i}", training=LONG) for i in range(2)]
    done = home.tutti("train", *specs)
    assert done.returncode == 0, done.stderr
    return {f"task-{i}": result_of(home, f"task-{i}") for i in range(2)}


def check(home: Home, undisturbed: dict[str, Any]) -> None:
    """Every job done once, with the weights of the undisturbed run (to the bit, where kernels
    allow it); nothing left to tell MLflow."""
    if keeps_row_bits():
        for task, expected in undisturbed.items():
            assert result_of(home, task) == expected
    versions = home.json("prompts", "list")
    assert sorted(version["ref"] for version in versions) == ["task-0@1", "task-1@1"]
    assert all(version["lineage"]["mlflow_run_id"] for version in versions)
    assert {job["state"] for job in home.json("jobs", "list")} == {"succeeded"}


def test_a_killed_driver_loses_nothing(new_home: Any, undisturbed: dict[str, Any]) -> None:
    home: Home = new_home("killed-driver", TUTTI_CHECKPOINT_S="0")
    specs = [write_task(home.tasks, f"task-{i}", training=LONG) for i in range(2)]
    process = start_training(home, specs)
    wait_for(process, r"step 1\d\d/")
    process.kill()
    process.wait()
    again = home.tutti("train", *specs)
    assert again.returncode == 0, again.stderr
    check(home, undisturbed)
    assert "task-0: goes on after step" in resumed(home)
    job = home.json("jobs", "list", "--task", "task-0")[0]
    assert "holder died" in home.tutti("jobs", "show", job["id"]).stdout


def test_a_killed_worker_is_replaced(new_home: Any, undisturbed: dict[str, Any]) -> None:
    home: Home = new_home("killed-worker", TUTTI_CHECKPOINT_S="0")
    specs = [write_task(home.tasks, f"task-{i}", training=LONG) for i in range(2)]
    process = start_training(home, specs)
    wait_for(process, r"step 1\d\d/")
    victims = workers_of(home)
    assert victims
    os.kill(victims[0], signal.SIGKILL)
    _, said = process.communicate(timeout=400)
    assert process.returncode == 0, said
    check(home, undisturbed)
    assert "task-0: goes on after step" in resumed(home)
    # Superseded checkpoints are gone; what the killed worker stored and never told may be left.
    assert len(leftovers(home)) <= 1


def test_an_interrupt_puts_the_jobs_back(new_home: Any, undisturbed: dict[str, Any]) -> None:
    home: Home = new_home("interrupted", TUTTI_CHECKPOINT_S="0")
    specs = [write_task(home.tasks, f"task-{i}", training=LONG) for i in range(2)]
    process = start_training(home, specs)
    wait_for(process, r"step 1\d\d/")
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=200)
    assert process.returncode == 1
    assert "Traceback" not in said
    states = {job["state"] for job in home.json("jobs", "list")}
    assert "running" not in states
    deadline = time.monotonic() + 60
    while workers_of(home) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert workers_of(home) == []
    again = home.tutti("train", *specs)
    assert again.returncode == 0, again.stderr
    check(home, undisturbed)
    assert "task-0: goes on after step" in resumed(home)
