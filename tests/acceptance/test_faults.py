"""Kills, interrupts and crowds real trainings on the embedded parts (SQLite, a Ray of its own), and
looks at the database, the artifacts and MLflow after."""

import fcntl
import os
import pty
import re
import signal
import sqlite3
import subprocess
import termios
import threading
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.checkpoints import jobs_of_checkpoints
from tests.acceptance.conftest import TIMEOUT_S, TUTTI, Home, until
from tests.tiny import keeps_row_bits, write_task

pytestmark = [pytest.mark.ray, pytest.mark.faults, pytest.mark.timeout(900)]
LONG = {"steps": 300, "batch_size": 4, "learning_rate": 0.01, "seed": 1}
TASKS = ("task-0", "task-1")


def start(home: Home, *arguments: object) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [str(TUTTI), *map(str, arguments)],
        env=home.env,
        cwd=home.tasks,
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


def rows(home: Home, query: str) -> list[tuple[Any, ...]]:
    """Ask the database itself, past Tutti."""
    with closing(sqlite3.connect(home.folder / "tutti.db", timeout=30)) as connection:
        return connection.execute(query).fetchall()


def states(home: Home) -> dict[str, str]:
    return dict(rows(home, "SELECT task, state FROM jobs"))


def job_id(home: Home, task: str) -> str:
    ((found,),) = rows(home, f"SELECT id FROM jobs WHERE task = '{task}'")
    return str(found)


def attempts(home: Home, task: str) -> list[tuple[str, str | None]]:
    """How each attempt ended, and by whose fault."""
    shown = home.json("jobs", "show", job_id(home, task))
    return [(each["outcome"], each["fault"]) for each in shown["attempts"]]


def told(home: Home, task: str) -> str:
    """What `tutti jobs show` says for people."""
    return home.tutti("jobs", "show", job_id(home, task)).stdout


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


def leftovers(home: Home) -> set[str]:
    """Stored artifacts that nothing refers to: no version, no job."""
    versions = home.json("prompts", "list")
    known = {each["digest"] for v in versions for each in v["artifacts"].values()}
    known |= {digest for v in versions for digest in v["lineage"]["datasets"].values()}
    known |= {digest for row in rows(home, "SELECT checkpoint, log FROM jobs") for digest in row}
    return {path.name for path in home.folder.glob("artifacts/sha256/*/*")} - known


def check_leftovers(home: Home) -> None:
    """What killed processes leave is checkpoints that were stored and never counted (a worker goes
    on storing until it hears that its driver is gone), and what one was writing."""
    jobs = {job for (job,) in rows(home, "SELECT id FROM jobs")}
    assert set(jobs_of_checkpoints(home.folder / "artifacts", leftovers(home))) <= jobs


def result_of(home: Home, task: str) -> Any:
    """What of a version must not depend on what happened around it."""
    version = home.json("prompts", "show", f"{task}@1")
    return version["digest"], version["artifacts"]["encoder"]["digest"]


def check_results(home: Home, undisturbed: dict[str, Any]) -> None:
    """One version a task, with the weights of the undisturbed run (to the bit, where kernels allow
    it), each told to MLflow in a run of its own; nothing is left to tell."""
    refs = [version["ref"] for version in home.json("prompts", "list")]
    for task, expected in undisturbed.items():
        assert [ref for ref in refs if ref.startswith(task)] == [f"{task}@1"]
        if keeps_row_bits():
            assert result_of(home, task) == expected
    runs = [version["lineage"]["mlflow_run_id"] for version in home.json("prompts", "list")]
    assert all(runs)
    assert len(set(runs)) == len(runs)
    assert rows(home, "SELECT count(*) FROM outbox WHERE delivered_at IS NULL") == [(0,)]


@pytest.fixture(scope="module")
def undisturbed(new_home: Any) -> dict[str, Any]:
    """The results of the same tasks when nothing happens."""
    home: Home = new_home("undisturbed")
    done = home.tutti("train", *write_tasks(home))
    assert done.returncode == 0, done.stderr
    assert leftovers(home) == set()
    return {task: result_of(home, task) for task in TASKS}


def write_tasks(home: Home) -> list[Path]:
    return [write_task(home.tasks, task, training=LONG) for task in TASKS]


def test_a_killed_driver_loses_nothing(new_home: Any, undisturbed: dict[str, Any]) -> None:
    home: Home = new_home("killed-driver", TUTTI_CHECKPOINT_S="0")
    specs = write_tasks(home)
    process = start(home, "train", *specs)
    wait_for(process, r"step [1-9]\d+/")
    process.kill()
    process.wait()
    again = home.tutti("train", *specs)
    assert again.returncode == 0, again.stderr
    check_results(home, undisturbed)
    for task in TASKS:
        assert attempts(home, task) == [("reclaimed", "machine"), ("succeeded", None)]
        said = told(home, task)
        assert "attempt 1 lost: the holder died; queued again" in said
        assert "goes on after step" in said
    check_leftovers(home)


def test_a_killed_worker_is_replaced(new_home: Any, undisturbed: dict[str, Any]) -> None:
    home: Home = new_home("killed-worker", TUTTI_CHECKPOINT_S="0")
    process = start(home, "train", *write_tasks(home))
    wait_for(process, r"step [1-9]\d+/")
    victims = workers_of(home)
    assert victims
    os.kill(victims[0], signal.SIGKILL)
    _, said = process.communicate(timeout=400)
    assert process.returncode == 0, said
    check_results(home, undisturbed)
    assert all(attempts(home, task) == [("succeeded", None)] for task in TASKS)
    # The other worker's task may have ended before Ray noticed the death.
    hit = [task for task in TASKS if "the gang's workers start again" in told(home, task)]
    assert hit
    assert all("goes on after step" in told(home, task) for task in hit)
    check_leftovers(home)


def test_an_interrupt_puts_the_jobs_back(new_home: Any, undisturbed: dict[str, Any]) -> None:
    home: Home = new_home("interrupted", TUTTI_CHECKPOINT_S="0")
    specs = write_tasks(home)
    process = start(home, "train", *specs)
    wait_for(process, r"step [1-9]\d+/")
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=200)
    assert process.returncode == 1
    assert "unfinished jobs are back in the queue" in said
    assert "Traceback" not in said
    assert states(home) == dict.fromkeys(TASKS, "queued")
    until(lambda: not workers_of(home), "its workers end", 60)
    again = home.tutti("train", *specs)
    assert again.returncode == 0, again.stderr
    check_results(home, undisturbed)
    for task in TASKS:
        assert attempts(home, task) == [("released", "preemption"), ("succeeded", None)]
        assert "the controller was stopped; queued again" in told(home, task)
        assert "goes on after step" in told(home, task)
    assert leftovers(home) == set()


SWEEP = {"over": {"training.learning_rate": [0.03, 0.01, 0.003]}}
BETTER = "accuracy > incumbent.accuracy"


def array(home: Home) -> list[dict[str, Any]]:
    """The jobs of the one array."""
    jobs: list[dict[str, Any]] = home.json("jobs", "list", "--task", "swept")
    return jobs


@dataclass(frozen=True)
class Crowd:
    """One training that much happens in: `said` is what it told, `seen` the states in which jobs
    were cancelled."""

    home: Home
    said: str
    seen: dict[str, str]


@pytest.fixture(scope="module")
def crowd(new_home: Any) -> Crowd:
    """Two tasks are trained beside one whose loss is soon no number, one that is cancelled while
    its gang starts, and one without end. When all train, another process submits one more and an
    array; when these are done, the one without end is cancelled."""
    home: Home = new_home("crowd", TUTTI_CHECKPOINT_S="1")
    endless = write_task(home.tasks, "endless", training={**LONG, "steps": 1_000_000})
    early = write_task(home.tasks, "early", training=LONG)
    bad = write_task(home.tasks, "bad", training={**LONG, "learning_rate": 1e30})
    late = write_task(home.tasks, "late")
    swept = write_task(home.tasks, "swept", sweep=SWEEP, promote={"when": BETTER})
    process = start(home, "train", *write_tasks(home), bad, early, endless)
    seen = {}
    try:
        until(lambda: states(home).get("early") == "admitted", "a job is admitted")
        seen["early"] = states(home)["early"]
        cancelled = home.tutti("jobs", "cancel", job_id(home, "early"))
        assert cancelled.returncode == 0, cancelled.stderr
        wait_for(process, r"task-0: step \d+/")
        submitted = home.tutti("submit", late)
        assert submitted.returncode == 0, submitted.stderr
        submitted = home.tutti("submit", swept, "--array")
        assert submitted.returncode == 0, submitted.stderr
        until(lambda: states(home)["late"] == "succeeded", "the late job is done")
        until(lambda: {job["state"] for job in array(home)} == {"succeeded"}, "the array is done")
        until(lambda: {states(home)[t] for t in TASKS} == {"succeeded"}, "the tasks are done")
        seen["endless"] = states(home)["endless"]
        cancelled = home.tutti("jobs", "cancel", job_id(home, "endless"))
        assert cancelled.returncode == 0, cancelled.stderr
        _, said = process.communicate(timeout=TIMEOUT_S)
    finally:
        process.kill()
    assert process.returncode == 1, said
    return Crowd(home, said, seen)


def test_a_task_whose_loss_is_no_number_fails_alone(
    crowd: Crowd, undisturbed: dict[str, Any]
) -> None:
    home = crowd.home
    check_results(home, undisturbed)
    assert states(home)["bad"] == "failed"
    assert attempts(home, "bad") == [("failed", "user")]
    assert "is not a finite number at step" in told(home, "bad")
    assert "lower training.learning_rate" in told(home, "bad")
    for task in TASKS:
        assert attempts(home, task) == [("succeeded", None)]


def test_a_job_of_another_process_is_taken_into_the_running_gang(crowd: Crowd) -> None:
    (gang,) = crowd.home.json("gangs", "list", "--all")
    assert gang["error"] is None
    assert gang["ended_at"]
    shown = crowd.home.json("jobs", "show", job_id(crowd.home, "late"))
    assert [each["gang"] for each in shown["attempts"]] == [gang["name"]]
    assert shown["state"] == "succeeded"
    assert shown["version"] == 1


def test_the_jobs_of_an_array_train_side_by_side_and_the_best_is_promoted(crowd: Crowd) -> None:
    home = crowd.home
    jobs = array(home)
    spans = [(job["started_at"], job["finished_at"]) for job in jobs]
    assert max(start for start, _ in spans) < min(end for _, end in spans)
    assert sorted(job["version"] for job in jobs) == [1, 2, 3]
    versions = home.json("prompts", "list", "--task", "swept")
    best = max(version["metrics"]["accuracy"] for version in versions)
    (promoted,) = [version for version in versions if version["aliases"]]
    assert promoted["metrics"]["accuracy"] == best
    shown = home.tutti("jobs", "show", jobs[0]["array"]["array"])
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.count("succeeded") == 3


def test_a_job_is_cancelled_in_every_state_that_has_no_end(crowd: Crowd) -> None:
    home = crowd.home
    assert crowd.seen == {"early": "admitted", "endless": "running"}
    for task in crowd.seen:
        assert attempts(home, task) == [("cancelled", None)]
    for task in ("queued", "paused"):
        home.tutti("submit", write_task(home.tasks, task))
    home.tutti("jobs", "pause", job_id(home, "paused"))
    assert {states(home)[task] for task in ("queued", "paused")} == {"queued", "paused"}
    for task in ("queued", "paused", "early"):  # the last one for the second time
        done = home.tutti("jobs", "cancel", job_id(home, task))
        assert done.returncode == 0, done.stderr
    for task in ("queued", "paused", "early", "endless"):
        assert states(home)[task] == "cancelled"
        assert told(home, task).count("cancelled by") == 1
        assert home.json("prompts", "list", "--task", task) == []
    for task, state in {"bad": "failed", "late": "succeeded"}.items():
        refused = home.tutti("jobs", "cancel", job_id(home, task))
        assert refused.returncode == 2, refused.stderr
        assert f"has already {state}: it cannot be cancelled" in refused.stderr
        assert states(home)[task] == state
    check_leftovers(home)


def test_one_spec_submitted_by_four_processes_is_one_job(new_home: Any) -> None:
    home: Home = new_home("four")
    spec = write_task(home.tasks, "task-0")
    processes = [start(home, "submit", spec) for _ in range(4)]
    said = [process.communicate(timeout=TIMEOUT_S) for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, said
    assert rows(home, "SELECT task, state, attempts FROM jobs") == [("task-0", "queued", 0)]
    assert sum("unchanged, queued" in out for out, _ in said) == 3
    assert leftovers(home) == {path.name for path in home.folder.glob("artifacts/sha256/*/*")}
    assert len(leftovers(home)) == 2  # the job's data, each split once


@pytest.mark.parametrize(
    ("answer", "state", "code"), [("d", "queued", 1), ("c", "cancelled", 1), ("w", "succeeded", 0)]
)
def test_ctrl_c_on_a_terminal_asks_and_does_what_is_answered(
    new_home: Any, answer: str, state: str, code: int
) -> None:
    home = new_home(f"asked-{answer}")
    write_task(home.tasks, "asked", training={**LONG, "steps": 120})
    with Terminal([TUTTI, "train", "asked.yaml"], home) as terminal:
        until(lambda: states(home).get("asked") == "running", "training")
        terminal.type("\x03")
        terminal.read_until("w(ait on)")
        terminal.type(f"{answer}\r")
        assert terminal.wait() == code
    assert states(home) == {"asked": state}


class Terminal:
    """A command on a real terminal of its own (a pty), as a person at a keyboard has it."""

    def __init__(self, command: list[Any], home: Home) -> None:
        self._command, self._home, self.said = [str(each) for each in command], home, ""

    def __enter__(self) -> "Terminal":
        self._ours, theirs = pty.openpty()
        self._process = subprocess.Popen(
            self._command,
            env={**self._home.env, "TERM": "xterm", "COLUMNS": "100", "LINES": "40"},
            cwd=self._home.tasks,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(theirs)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._reader.join(10)
        os.close(self._ours)

    def type(self, keys: str) -> None:
        os.write(self._ours, keys.encode())

    def read_until(self, text: str) -> None:
        until(lambda: text in self.said, f"the terminal shows {text!r}")

    def wait(self) -> int:
        return self._process.wait(240)

    def _read(self) -> None:
        """Go on reading, or the program would wait for a reader."""
        with suppress(OSError):  # the other end is closed
            while data := os.read(self._ours, 65536):
                self.said += data.decode(errors="replace")
