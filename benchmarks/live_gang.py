"""Real gangs to measure: a controller in a thread, Ray, DeepSpeed, SQLite, and what gangs tell."""

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import psutil
import yaml

from orchestrator.controller_run import serve
from orchestrator.domain.gang import GangStatus, TaskAdmitted, TaskProgress
from orchestrator.sdk import Tutti
from orchestrator.settings import read_settings
from orchestrator.training.gang import RayGang

TASK = Path(__file__).parents[1] / "examples/tasks/country-continent.yaml"
TIMEOUT_S = 300.0
_LOOK_S = 2.0


class Steps:
    """When the controller heard that a job's first step begins, and of each step that was taken;
    and how long the gangs say that their steps take. Seconds of `time.perf_counter`."""

    def __init__(self) -> None:
        self.begins: dict[str, float] = {}
        self.taken: dict[str, list[float]] = {}
        self.step_s: list[float] = []

    @contextmanager
    def listening(self) -> Iterator[Self]:
        """Listen to what every gang of this process tells."""
        poll = RayGang.poll

        def heard(gang: RayGang) -> GangStatus:
            status = poll(gang)
            self._take(status, time.perf_counter())
            return status

        RayGang.poll = heard  # type: ignore[method-assign]
        try:
            yield self
        finally:
            RayGang.poll = poll  # type: ignore[method-assign]

    def _take(self, status: GangStatus, now: float) -> None:
        for event in status.events:
            if isinstance(event, TaskAdmitted):
                self.begins.setdefault(event.job_id, now)
            if isinstance(event, TaskProgress) and event.step > len(
                self.taken.get(event.job_id, ())
            ):
                self.taken.setdefault(event.job_id, []).append(now)
        if status.step_s:
            self.step_s.append(status.step_s)


class RayMeter:
    """Processor seconds of Ray's processes, those that ended included (as of two seconds before
    their end). A context; `seconds` counts from its start."""

    def __init__(self) -> None:
        self._used: dict[tuple[int, float], float] = {}
        self._before = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._look()
        self._before = sum(self._used.values())
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def seconds(self) -> float:
        self._look()
        return sum(self._used.values()) - self._before

    def _run(self) -> None:
        while not self._stop.wait(_LOOK_S):
            self._look()

    def _look(self) -> None:
        for process in psutil.process_iter():
            try:
                command = " ".join(process.cmdline())
                if "ray::" in command or "/ray/" in command:
                    times = process.cpu_times()
                    self._used[process.pid, process.create_time()] = times.user + times.system
            except psutil.Error:
                continue  # it ended just now


@contextmanager
def serving(folder: Path, base: Path, **settings: object) -> Iterator[Tutti]:
    """A Tutti with a controller beside it; `settings` as in TUTTI_GANG_IDLE_S, without TUTTI_."""
    variables = {f"TUTTI_{name.upper()}": str(value) for name, value in settings.items()}
    read = read_settings({"TUTTI_HOME": str(folder)} | variables, cwd=folder)
    stop = threading.Event()
    with Tutti(read) as tutti, Tutti(read) as other:
        tutti.add_base("smollm2-135m", base)
        server = threading.Thread(target=serve, args=(other.parts, stop))
        server.start()
        try:
            yield tutti
        finally:
            stop.set()
            server.join()


def make_spec(folder: Path, name: str, steps: int, seed: int = 0) -> Path:
    """The example task under another name, with so many steps, and judged only at the end. `seed`
    also orders its rows."""
    spec: dict[str, Any] = yaml.safe_load(TASK.read_text())
    spec["task"] = name
    spec["training"] = {"steps": steps, "batch_size": 8, "seed": seed}
    spec["evaluation"] = {"every": steps, "metric": "loss"}
    spec.pop("promote")
    shutil.copytree(TASK.parent / "data", folder / "data", dirs_exist_ok=True)
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(spec))
    return path


def wait_until(is_so: Callable[[], bool], what: str, pause_s: float = 0.05) -> None:
    """Wait; raise TimeoutError after five minutes."""
    deadline = time.perf_counter() + TIMEOUT_S
    while not is_so():
        if time.perf_counter() > deadline:
            raise TimeoutError(f"{what}: not in {TIMEOUT_S:.0f} s")
        time.sleep(pause_s)
