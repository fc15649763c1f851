"""Measures the machine it runs on: what workers there have to themselves."""

from pathlib import Path

from orchestrator.domain.gang import Node

_MEMINFO, _CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


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


def _fields(file: Path) -> dict[str, int]:
    lines = (line.split() for line in file.read_text().splitlines())
    return {line[0]: int(line[1]) for line in lines if len(line) > 1}


def _free_gpu_bytes() -> tuple[int, ...]:
    import torch

    if not torch.cuda.is_available():
        return ()
    return tuple(torch.cuda.mem_get_info(gpu)[0] for gpu in range(torch.cuda.device_count()))
