"""The cluster's processes: each part leads a session, which holds all that it starts in turn.

A part is known by its number, its start time and the machine's boot: another process that was
given the number later is never signalled. A session keeps its number from being given away for as
long as one process is in it, so orphans of a killed part are found too.
"""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

POLL_S = 0.05
KILL_S = 10.0
FREE_S = 10.0
NUM_LAST_LINES = 15


class ClusterError(Exception):
    """What a person can do something about: it is printed without a traceback."""


@dataclass(frozen=True)
class Service:
    """How a part is started, and what tells that it answers.

    `is_ready` gets its process number and what it has written to its log since its start.
    `user` runs it when root starts the cluster: PostgreSQL refuses root.
    """

    name: str
    command: tuple[str, ...]
    env: Mapping[str, str]
    is_ready: Callable[[int, str], bool]
    stop_signal: signal.Signals = signal.SIGTERM
    user: str | None = None


@dataclass(frozen=True)
class Part:
    """A started service: the process that leads its session."""

    name: str
    pid: int
    started: int  # kernel ticks after the boot
    boot: str
    stop_signal: int

    @property
    def is_alive(self) -> bool:
        """Whether its first process runs (or is paused)."""
        stat = _stat(self.pid)
        return (
            stat is not None and stat.runs and stat.started == self.started and self.boot == _boot()
        )


class _Process(NamedTuple):
    pid: int
    started: int


class _Stat(NamedTuple):
    runs: bool  # neither a zombie nor gone
    parent: int
    session: int
    started: int


def spawn(service: Service, log: Path, folder: Path, parts: Path) -> Part:
    """Start it, its words going to the end of `log`, and write it down in `parts`."""
    with log.open("ab") as out:
        process = subprocess.Popen(
            service.command,
            env=dict(service.env),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            user=service.user,
            group=service.user,
            extra_groups=None if service.user is None else [],
        )
    stat = _stat(process.pid)
    assert stat is not None  # a child stays at least as a zombie
    process.returncode = 0  # it outlives this program, which need not warn of it
    part = Part(service.name, process.pid, stat.started, _boot(), int(service.stop_signal))
    (parts / f"{part.name}.json").write_text(json.dumps(asdict(part)), encoding="utf-8")
    return part


def read_parts(parts: Path) -> dict[str, Part]:
    """What was started and not stopped, alive or not, by name."""
    found = (json.loads(file.read_text(encoding="utf-8")) for file in sorted(parts.glob("*.json")))
    return {part.name: part for part in (Part(**values) for values in found)}


def wait_ready(service: Service, part: Part, log: Path, offset: int, timeout_s: float) -> None:
    """Wait until it answers, or raise ClusterError with its last words."""
    deadline = time.monotonic() + timeout_s
    while True:
        answers = service.is_ready(part.pid, _said(log, offset))
        if not part.is_alive:  # what answers, if anything, is another's
            raise _did_not_start(service, "it ended", log, offset)
        if answers:
            return
        if time.monotonic() > deadline:
            why = f"it does not answer after {timeout_s:.0f} s"
            raise _did_not_start(service, why, log, offset)
        time.sleep(POLL_S)


def _did_not_start(service: Service, why: str, log: Path, offset: int) -> ClusterError:
    last = [f"  {line}" for line in _said(log, offset).splitlines()[-NUM_LAST_LINES:]]
    return ClusterError(
        "\n".join([f"{service.name} did not start: {why}. Its log, {log}, ends:", *last])
    )


def stop(part: Part, grace_s: float) -> None:
    """Ask its first process to end, wait `grace_s` for it, and kill what is left of it."""
    seen: set[_Process] = set()
    _left(part, seen)
    if part.is_alive and part.stop_signal != signal.SIGKILL:
        send(part.pid, signal.Signals(part.stop_signal))
        send(part.pid, signal.SIGCONT)  # one that is paused hears nothing
        deadline = time.monotonic() + grace_s
        while part.is_alive and time.monotonic() < deadline:
            time.sleep(POLL_S)
    _end(part, seen)


def kill(part: Part) -> None:
    """Kill its whole session at once, as a machine's failure would, and see it gone."""
    _end(part, set())


def _end(part: Part, seen: set[_Process]) -> None:
    deadline = time.monotonic() + KILL_S
    while left := _left(part, seen):
        for process in left:
            send(process.pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            pids = sorted(process.pid for process in left)
            raise ClusterError(f"{part.name}: processes {pids} cannot be killed")
        time.sleep(POLL_S)
    with suppress(ChildProcessError):  # most were started by another process: init ends them
        os.waitpid(part.pid, os.WNOHANG)


def wait_freed(part: Part) -> None:
    """See a dead part's number freed: PostgreSQL does not start while a zombie has its last one."""
    deadline = time.monotonic() + FREE_S
    while (stat := _stat(part.pid)) and stat.started == part.started and not stat.runs:
        if time.monotonic() > deadline:
            return
        time.sleep(POLL_S)


def send(pid: int, which: signal.Signals) -> None:
    """Signal a process, if it is still there."""
    with suppress(ProcessLookupError):
        os.kill(pid, which)


def members(part: Part) -> list[int]:
    """The running processes of its session, and those they started into sessions of their own."""
    return sorted(process.pid for process in _left(part, set()))


def memory_bytes(pids: list[int]) -> int:
    """What they use: each shared page is divided among those who share it (PSS)."""
    total = 0
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
        except OSError:  # it ended meanwhile, or is another user's
            continue
        total += sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))
    return total


def _left(part: Part, seen: set[_Process]) -> set[_Process]:
    """What runs of the part, and of `seen`, which takes it in: a killed parent's children are
    found no more by way of it."""
    stats = _stats()
    seen |= _found(part, stats)
    return {
        process
        for process in seen
        if (stat := stats.get(process.pid)) and stat.runs and stat.started == process.started
    }


def _found(part: Part, stats: Mapping[int, _Stat]) -> set[_Process]:
    first = stats.get(part.pid)
    if part.boot != _boot() or (first is not None and first.started != part.started):
        return set()
    found = {pid for pid, stat in stats.items() if part.pid in (pid, stat.session)}
    new = found
    while new:
        new = {pid for pid, stat in stats.items() if stat.parent in new} - found
        found |= new
    return {_Process(pid, stats[pid].started) for pid in found}


def _stats() -> dict[int, _Stat]:
    pids = [int(each.name) for each in Path("/proc").iterdir() if each.name.isdigit()]
    return {pid: stat for pid in pids if (stat := _stat(pid)) is not None}


def _stat(pid: int) -> _Stat | None:
    """See proc_pid_stat(5); the second field is a name in brackets that may hold anything."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return _Stat(fields[0] not in "ZX", int(fields[1]), int(fields[3]), int(fields[19]))


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def _said(log: Path, offset: int) -> str:
    with log.open("rb") as words:
        words.seek(offset)
        return words.read().decode(errors="replace")
