"""Names processes in leases, and tells which of them are gone.

A holder is `host:pid:start:boot`: the process, when it started (clock ticks after the boot), and a
digest of the machine's boot and its process namespace. Numbers of processes mean something within
one boot and namespace alone, so only there is a holder ever known to be dead: containers and
laptops share host names. Linux tells all this; elsewhere, and of names without a `boot`, nothing is
known.
"""

import hashlib
import os
import socket
from pathlib import Path

_BOOT_DIGITS = 12


def this_holder() -> str:
    """This process's own name."""
    pid = os.getpid()
    return f"{socket.gethostname()}:{pid}:{_started(pid) or ''}:{_boot()}"


def is_here(holder: str) -> bool:
    """Whether a holder is this process."""
    return holder == this_holder()


def is_dead(holder: str) -> bool:
    """Whether a holder is known to be gone; one of elsewhere never is."""
    host, pid, started, boot = _parts(holder)
    if not boot or (host, boot) != (socket.gethostname(), _boot()) or not pid.isdecimal():
        return False
    return _started(int(pid)) not in (started, None)


def place(holder: str) -> str:
    """A holder for people."""
    host, pid, _, _ = _parts(holder)
    return f"{host} (pid {pid})" if pid else host


def _parts(holder: str) -> tuple[str, str, str, str]:
    """Host, process, start and boot; those that it does not tell are empty."""
    host, pid, started, boot, *_ = (*holder.split(":"), "", "", "")
    return host, pid, started, boot


def _started(pid: int) -> str | None:
    """When a process started; empty if it runs no more, None where that cannot be seen."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return ""
    except PermissionError:  # another user's
        pass
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:  # it ended just now, or /proc hides it
        return None
    state, *fields = stat.rpartition(")")[2].split()
    return "" if state in "ZX" else fields[18]


def _boot() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_bytes().strip()
        namespace = Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        return ""
    return hashlib.sha256(b"%s %d" % (boot, namespace)).hexdigest()[:_BOOT_DIGITS]
