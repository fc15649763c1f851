"""The machine a benchmark ran on, and how busy others kept it meanwhile (Linux)."""

import os
import platform
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from orchestrator.code_version import code_version

PACKAGES = ("torch", "peft", "transformers")


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
    """How many cores other processes kept busy, on average, since it was started."""

    clock: float
    own_s: float
    all_s: float

    @classmethod
    def start(cls) -> "BusyMeter":
        return cls(time.perf_counter(), time.process_time(), _busy_seconds())

    def cores_of_others(self) -> float:
        own = time.process_time() - self.own_s
        busy = _busy_seconds() - self.all_s
        return max(0.0, busy - own) / (time.perf_counter() - self.clock)


def load_average() -> list[float]:
    """The number of processes that want a core, over 1, 5 and 15 minutes."""
    return [round(value, 2) for value in os.getloadavg()]


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
