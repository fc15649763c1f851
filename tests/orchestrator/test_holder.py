import multiprocessing
import os
import socket
import subprocess
import sys
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from orchestrator import holder
from orchestrator.holder import is_dead, is_here, place, this_holder


def tell(end: Connection) -> None:
    end.send(this_holder())
    end.recv()


@pytest.fixture
def gone() -> str:
    """A process of this machine that has ended."""
    command = (sys.executable, "-c", "from orchestrator.holder import *; print(this_holder())")
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_a_process_is_here_and_alive_for_itself() -> None:
    assert is_here(this_holder())
    assert not is_dead(this_holder())
    assert place(this_holder()) == f"{socket.gethostname()} (pid {os.getpid()})"


def test_another_process_is_dead_once_it_has_ended_and_before_it_is_waited_for() -> None:
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=tell, args=(there,))
    process.start()
    other = here.recv()
    assert not is_here(other)
    assert not is_dead(other)
    here.send(None)
    os.waitid(os.P_PID, process.pid or 0, os.WEXITED | os.WNOWAIT)
    assert is_dead(other)
    process.join()
    assert is_dead(other)


def test_one_that_was_given_the_number_later_is_another() -> None:
    host, pid, started, boot = this_holder().split(":")
    assert is_dead(f"{host}:{pid}:{int(started) - 1}:{boot}")


def test_what_has_the_same_host_name_is_not_dead_unless_boot_and_namespace_are_the_same(
    gone: str,
) -> None:
    host, pid, started, boot = gone.split(":")
    assert is_dead(gone)
    for stranger in (
        f"{host}:{pid}:{started}:{boot[::-1]}",
        f"{host}:{pid}:{started}",  # a name from before the boot was told
        f"{host}:{pid}:{started}:",
        f"elsewhere:{pid}:{started}:{boot}",
    ):
        assert not is_dead(stranger)


def test_where_the_boot_is_not_told_nothing_is_known(
    gone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holder, "_boot", lambda: "")
    host, pid, started, _ = gone.split(":")
    assert not is_dead(f"{host}:{pid}:{started}:")


def test_process_that_may_not_be_signalled_is_alive() -> None:
    host, _, _, boot = this_holder().split(":")
    started = Path("/proc/1/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    assert not is_dead(f"{host}:1:{started}:{boot}")


@pytest.mark.parametrize(
    "text", ["", "host", "host:", "h:x:1:b", "h:-1:1:b", f"h:{10**40}:1:b", ":"]
)
def test_what_is_no_name_is_neither_here_nor_dead(text: str) -> None:
    host, boot = socket.gethostname(), this_holder().rpartition(":")[2]
    named = text.replace("h:", f"{host}:").replace(":b", f":{boot}")
    assert not is_here(named)
    assert is_dead(named) == (str(10**40) in text)  # there can be no such process


def test_places_are_for_people() -> None:
    assert place("far:12:345:abc") == place("far:12:345") == "far (pid 12)"
    assert place("far") == "far"
