"""Measures the machine it runs on: what workers there have to themselves."""

import platform
import re
from functools import cache
from pathlib import Path

from orchestrator.domain.gang import Node

_MEMINFO, _CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
_CPUINFO = Path("/proc/cpuinfo")


def measure_node(num_cpus: int, has_gpu: bool) -> Node:
    """This machine. torch is imported, and GPUs are asked, only where Ray has seen one."""
    return Node(num_cpus, free_memory(), _free_gpu_bytes() if has_gpu else ())


def free_memory(meminfo: Path = _MEMINFO, cgroup: Path = _CGROUP) -> int:
    """Bytes that programs can still take: of the machine, or of this container (cgroup v2)."""
    free = _fields(meminfo)["MemAvailable:"] << 10
    try:
        limit = (cgroup / "memory.max").read_text().strip()
        if limit == "max":
            return free
        used = int((cgroup / "memory.current").read_text())
        cached = _fields(cgroup / "memory.stat")["inactive_file"]
    except OSError:
        return free
    return min(free, max(0, int(limit) - used + cached))


@cache
def hardware_line(cpuinfo: Path = _CPUINFO) -> str:
    """What this process computes on, for people: its GPU, if it has one, or its processor."""
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    names = re.findall(r"^model name\s*:\s*(.+?)\s*$", text, re.MULTILINE)
    threads = torch.get_num_threads()
    name = ", ".join(sorted(set(names))) or platform.machine()
    return f"{name}, {threads} thread{'' if threads == 1 else 's'}"


def _fields(file: Path) -> dict[str, int]:
    lines = (line.split() for line in file.read_text().splitlines())
    return {line[0]: int(line[1]) for line in lines if len(line) > 1}


def _free_gpu_bytes() -> tuple[int, ...]:
    import torch

    if not torch.cuda.is_available():
        return ()
    return tuple(torch.cuda.mem_get_info(gpu)[0] for gpu in range(torch.cuda.device_count()))
