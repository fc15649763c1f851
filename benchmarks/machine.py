"""The machine a benchmark ran on, and how busy others kept it meanwhile (Linux)."""

import os
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from orchestrator.code_version import code_version

PACKAGES = ("torch", "peft", "transformers")
BUSY_CORES = 0.2  # of other processes, on average: above this, times by the clock are not trusted


class Surroundings:
    """The machine, and what went on there beside the benchmark since this was made."""

    def __init__(self, num_threads: int) -> None:
        self._machine = describe_machine(num_threads)
        self._before = load_average()
        self._meter = BusyMeter.start()

    def facts(self, workers_s: float = 0.0) -> dict[str, Any]:
        """For the results: `machine`, and `load` up to now. `workers_s` are processor seconds of
        the benchmark's own processes that have not ended."""
        cores = self._meter.cores_of_others(workers_s)
        load = {
            "before": self._before,
            "after": load_average(),
            "cores_of_others": cores,
            "was_busy": cores > BUSY_CORES,
        }
        return {"machine": self._machine, "load": load}


def machine_notes(facts: Mapping[str, Any]) -> list[str]:
    """The sentences a results file ends with."""
    load = facts["load"]
    machine = ", ".join(f"{key} {value}" for key, value in facts["machine"].items())
    busy = (
        f"{'**The machine was busy**' if load['was_busy'] else 'The machine was quiet'}: other "
        f"processes used {load['cores_of_others']:.2f} cores on average (load average "
        f"{load['before'][0]} before, {load['after'][0]} after)."
    )
    return [f"Machine: {machine}.", busy]


def describe_machine(num_threads: int) -> dict[str, object]:
    """Processor, cores, threads used, versions and the date."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": num_threads,
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "unset"),
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
        "tutti": code_version(),
    }


@dataclass
class BusyMeter:
    """How many cores other processes kept busy, on average, since it was started.

    Child processes are the benchmark's own, once they have ended.
    """

    clock: float
    own_s: float
    all_s: float

    @classmethod
    def start(cls) -> "BusyMeter":
        return cls(time.perf_counter(), _own_seconds(), _busy_seconds())

    def cores_of_others(self, workers_s: float = 0.0) -> float:
        own = _own_seconds() - self.own_s + workers_s
        busy = _busy_seconds() - self.all_s
        return max(0.0, busy - own) / (time.perf_counter() - self.clock)


def load_average() -> list[float]:
    """The number of processes that want a core, over 1, 5 and 15 minutes."""
    return [round(value, 2) for value in os.getloadavg()]


def _own_seconds() -> float:
    """Processor seconds of this process and of its children that ended."""
    return sum(os.times()[:4])


def _busy_seconds() -> float:
    """Processor seconds of the machine since boot that were not idle (proc(5): /proc/stat)."""
    fields = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:]
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields[:8])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()
