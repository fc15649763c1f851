import re
from pathlib import Path

import pytest

from orchestrator.training.node import free_memory, hardware_line, measure_node

MEMINFO = "MemTotal:       24000000 kB\nMemFree:  1000 kB\nMemAvailable:   20000000 kB\nHuge: 0\n"


def cgroup(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / f"memory.{name}").write_text(text)
    return folder


@pytest.fixture
def meminfo(tmp_path: Path) -> Path:
    path = tmp_path / "meminfo"
    path.write_text(MEMINFO)
    return path


def test_this_machine_has_memory_that_programs_can_take() -> None:
    node = measure_node(3, has_gpu=False)
    assert (node.num_cpus, node.gpu_bytes) == (3, ())
    assert 10**8 < node.memory_bytes < 10**14


def test_without_a_container_the_machine_counts(meminfo: Path, tmp_path: Path) -> None:
    assert free_memory(meminfo, tmp_path / "none") == 20_000_000 << 10


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        ("max\n", 20_000_000 << 10),
        ("1000\n", 700),
        ("100\n", 0),
        (f"{1 << 40}\n", 20_000_000 << 10),
    ],
)
def test_a_containers_limit_counts_less_what_it_uses_and_cannot_drop(
    meminfo: Path, tmp_path: Path, limit: str, expected: int
) -> None:
    stat = "anon 300\ninactive_file 100\n"
    folder = cgroup(tmp_path, max=limit, current="400\n", stat=stat)
    assert free_memory(meminfo, folder) == expected


def test_hardware_is_one_line_with_the_processors_name(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(
        "processor : 0\nmodel name\t: Zen 9 \n\nprocessor : 1\nmodel name\t: Zen 9\n"
    )
    assert re.fullmatch(r"Zen 9, \d+ threads?", hardware_line(cpuinfo))
    assert re.fullmatch(r"\w+, \d+ threads?", hardware_line(tmp_path / "none"))
    assert "\n" not in hardware_line()
