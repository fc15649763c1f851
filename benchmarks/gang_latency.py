"""How soon does a submitted job take its first step: in a gang that is up, and in a fresh one?

Run as `python -m benchmarks.gang_latency`. Real parts throughout: SQLite, a controller, Ray Train,
DeepSpeed, two workers. Time runs from the commit of the submission to the moment the controller
hears of the job's first step. A fresh Ray Train run is a gang started for the one job, on a Ray
cluster that is up already; in the warm gang jobs come while it idles, and while other tasks train.
"""

import argparse
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from benchmarks.base_folder import base_name
from benchmarks.command import new_parser, positive, run
from benchmarks.machine import Surroundings, machine_notes
from benchmarks.report import at_least, at_most, document, table, write_results
from orchestrator.controller_run import serve
from orchestrator.domain.gang import GangStatus, TaskProgress
from orchestrator.domain.job import JobState
from orchestrator.sdk import Tutti
from orchestrator.settings import read_settings
from orchestrator.training.gang import RayGang

TASK = Path(__file__).parents[1] / "examples/tasks/country-continent.yaml"
MIN_RATIO, MAX_OVER_STEP_S = 30.0, 0.5
TIMEOUT_S = 300.0


class FirstSteps:
    """When the controller heard of each job's first step, and how long the gang's steps take."""

    def __init__(self) -> None:
        self.at: dict[str, float] = {}
        self.step_s: list[float] = []
        self._poll = RayGang.poll

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Listen to every gang's words."""
        poll = self._poll

        def heard(gang: RayGang) -> GangStatus:
            status = poll(gang)
            now = time.perf_counter()
            for event in status.events:
                if isinstance(event, TaskProgress) and event.step >= 1:
                    self.at.setdefault(event.job_id, now)
            if status.step_s:
                self.step_s.append(status.step_s)
            return status

        RayGang.poll = heard  # type: ignore[method-assign]
        try:
            yield
        finally:
            RayGang.poll = poll  # type: ignore[method-assign]


@contextmanager
def serving(folder: Path, base: Path, gang_idle_s: float) -> Iterator[Tutti]:
    """A Tutti with a controller beside it."""
    settings = read_settings(
        {"TUTTI_HOME": str(folder), "TUTTI_GANG_IDLE_S": str(gang_idle_s)}, cwd=folder
    )
    stop = threading.Event()
    with Tutti(settings) as tutti, Tutti(settings) as other:
        tutti.add_base("smollm2-135m", base)
        server = threading.Thread(target=serve, args=(other.parts, stop))
        server.start()
        try:
            yield tutti
        finally:
            stop.set()
            server.join()


def make_spec(folder: Path, name: str, steps: int) -> Path:
    """The example task under another name, with so many steps, and judged only at the end."""
    spec: dict[str, Any] = yaml.safe_load(TASK.read_text())
    spec["task"] = name
    spec["training"] = {"steps": steps, "batch_size": 8}
    spec["evaluation"] = {"every": steps, "metric": "loss"}
    spec.pop("promote")
    shutil.copytree(TASK.parent / "data", folder / "data", dirs_exist_ok=True)
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(spec))
    return path


def latency_s(tutti: Tutti, spec: Path, first: FirstSteps) -> float:
    """Submit, wait for the first step, and let the job end."""
    (submitted,) = tutti.submit([spec], force=True)
    started = time.perf_counter()
    deadline = started + TIMEOUT_S
    job = submitted.job.id
    while job not in first.at or not tutti.job(job).state.is_terminal:
        if time.perf_counter() > deadline:
            raise TimeoutError(f"job {job} took no step in {TIMEOUT_S:.0f} s")
        time.sleep(0.05)
    return first.at[job] - started


def wait_until_no_gang(tutti: Tutti) -> None:
    while tutti.gangs():
        time.sleep(0.2)


def measure(folder: Path, arguments: argparse.Namespace) -> bool:
    surroundings = Surroundings(arguments.threads)
    first = FirstSteps()
    found: dict[str, list[float]] = {"fresh": [], "warm, idle": [], "warm, busy": []}
    with tempfile.TemporaryDirectory() as name, first.listening():
        home = Path(name)
        spec = make_spec(home, "newcomer", 3)  # a first step that no evaluation follows
        with serving(home, folder, 0.0) as tutti:
            latency_s(tutti, spec, first)  # starts Ray
            for _ in range(arguments.fresh):
                wait_until_no_gang(tutti)
                found["fresh"].append(latency_s(tutti, spec, first))
        with serving(home, folder, 3600.0) as tutti:
            latency_s(tutti, spec, first)
            for _ in range(arguments.repeats):
                found["warm, idle"].append(latency_s(tutti, spec, first))
            others = [make_spec(home, f"other-{i}", 100_000) for i in range(arguments.others)]
            running = tutti.submit(others, force=True)
            wait_until_running(tutti, [each.job.id for each in running], first)
            first.step_s.clear()
            for _ in range(arguments.repeats):
                found["warm, busy"].append(latency_s(tutti, spec, first))
            step_s = statistics.median(first.step_s)
            for each in running:
                tutti.cancel(each.job.id)
    facts = surroundings.facts() | {
        "base": base_name(folder),
        "seconds": found,
        "step_s": step_s,
        "others": arguments.others,
    }
    write_results(arguments.output, "gang_latency", facts, _markdown(facts))
    print(_markdown(facts))
    return True


def wait_until_running(tutti: Tutti, ids: Sequence[str], first: FirstSteps) -> None:
    deadline = time.perf_counter() + TIMEOUT_S
    while not all(each in first.at and tutti.job(each).state == JobState.RUNNING for each in ids):
        if time.perf_counter() > deadline:
            raise TimeoutError("the other tasks did not start")
        time.sleep(0.2)


def _markdown(facts: dict[str, Any]) -> str:
    found, step_s = facts["seconds"], facts["step_s"]
    rows = [
        [kind, str(len(values)), *(f"{cut:.2f}" for cut in _cuts(values))]
        for kind, values in found.items()
    ]
    median = {kind: statistics.median(values) for kind, values in found.items()}
    ratio = at_least(median["fresh"] / median["warm, idle"], MIN_RATIO)
    over = at_most(_cuts(found["warm, busy"])[0], step_s + MAX_OVER_STEP_S, " s")
    verdicts = [
        f"Fresh against warm, medians: {ratio}.",
        f"Beside {facts['others']} tasks whose steps take {step_s:.2f} s, median: {over}.",
    ]
    columns = ["seconds to the first step", "jobs", "p50", "p99", "most"]
    notes = [facts["base"], *machine_notes(facts)]
    return document("From submission to first step", table(columns, rows, 1), verdicts, notes=notes)


def _cuts(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, 99th percentile (nearest rank) and maximum."""
    ordered = sorted(values)
    rank = max(0, -(-99 * len(ordered) // 100) - 1)
    return statistics.median(ordered), ordered[rank], ordered[-1]


def main() -> int:
    parser = new_parser("gang_latency", __doc__)
    parser.add_argument("--fresh", type=positive, default=3, help="gangs started")
    parser.add_argument("--repeats", type=positive, default=30, help="jobs into the warm gang")
    parser.add_argument("--others", type=positive, default=4, help="tasks that train beside them")
    return run(parser.parse_args(), measure)


if __name__ == "__main__":
    sys.exit(main())
