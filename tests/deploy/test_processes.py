"""Parts as sessions: what is ended, what is left alone. The processes are real."""

import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from deploy.local.processes import (
    ClusterError,
    Part,
    Service,
    kill,
    members,
    memory_bytes,
    read_parts,
    spawn,
    stop,
    wait_ready,
)

READY = "ready"
SLEEP = f"import time; print({READY!r}, flush=True); time.sleep(600)"
#: Starts a child in its session and one in another, and waits.
FAMILY = f"""
import subprocess, sys, time
for apart in (False, True):
    child = subprocess.Popen(
        [sys.executable, "-c", {SLEEP!r}], stdout=subprocess.PIPE, start_new_session=apart
    )
    child.stdout.readline()
{SLEEP}
"""
DEAF = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n{SLEEP}"


def service(program: str, name: str = "part") -> Service:
    command = (sys.executable, "-c", program)
    return Service(name, command, dict(os.environ), lambda _, said: READY in said)


POLITE = f"""
import signal, sys
def end(*_):
    print("asked to end", flush=True)
    sys.exit()
signal.signal(signal.SIGTERM, end)
{SLEEP}
"""


@pytest.fixture
def started(tmp_path: Path) -> Iterator["Starter"]:
    starter = Starter(tmp_path)
    yield starter
    for part in starter.begun:
        kill(part)


class Starter:
    """Starts programs and remembers them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log, self.begun = folder, folder / "log", list[Part]()

    def __call__(self, program: str, timeout_s: float = 60.0, waits: bool = False) -> Part:
        self.log.touch()
        what, offset = service(program), self.log.stat().st_size
        part = spawn(what, self.log, self.folder, self.folder)
        self.begun.append(part)
        if waits:  # until it has ended
            os.waitid(os.P_PID, part.pid, os.WEXITED | os.WNOWAIT)
        wait_ready(what, part, self.log, offset, timeout_s)
        return part


def test_a_part_is_written_down_as_it_was_started(started: Starter) -> None:
    part = started(SLEEP)
    assert read_parts(started.folder) == {"part": part}
    assert part.is_alive
    assert members(part) == [part.pid]
    assert memory_bytes(members(part)) > 1 << 20


def test_a_killed_part_takes_all_that_it_started_along(started: Starter) -> None:
    part = started(FAMILY)
    assert len(members(part)) == 3
    kill(part)
    assert members(part) == []
    assert not part.is_alive


def test_a_killed_parts_number_is_given_back(started: Starter) -> None:
    part = started(SLEEP)
    kill(part)
    assert not Path(f"/proc/{part.pid}").exists()


def test_orphans_in_its_session_are_found_after_the_part_died(started: Starter) -> None:
    part = started(FAMILY)
    os.kill(part.pid, signal.SIGKILL)
    os.waitpid(part.pid, 0)
    assert not part.is_alive
    assert len(members(part)) == 1  # the other is in a session of its own
    kill(part)
    assert members(part) == []


def test_a_part_that_does_not_listen_is_killed(started: Starter) -> None:
    part = started(DEAF)
    stop(part, grace_s=0.2)
    assert members(part) == []


def test_what_a_part_leaves_when_it_is_asked_to_end_is_killed(started: Starter) -> None:
    part = started(FAMILY)
    family = members(part)
    stop(part, grace_s=30)
    assert not [pid for pid in family if runs(pid)]


def runs(pid: int) -> bool:
    """Whether it is neither gone nor a zombie that its new parent has not taken notice of."""
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def test_a_paused_part_hears_the_stop(started: Starter) -> None:
    part = started(POLITE)
    os.kill(part.pid, signal.SIGSTOP)
    assert part.is_alive
    stop(part, grace_s=30)
    assert members(part) == []
    assert "asked to end" in started.log.read_text()


def test_a_process_that_got_the_number_later_is_left_alone(started: Starter) -> None:
    other = started(SLEEP)
    for stale in (replace(other, started=other.started - 1), replace(other, boot="an earlier one")):
        assert not stale.is_alive
        stop(stale, grace_s=0)
        assert members(stale) == []
    assert other.is_alive


def test_stopping_what_is_gone_does_nothing(started: Starter) -> None:
    part = started(SLEEP)
    kill(part)
    stop(part, grace_s=0)
    kill(part)


def test_a_part_that_ends_at_once_is_named_with_its_last_words(started: Starter) -> None:
    with pytest.raises(ClusterError) as caught:
        started("print('no such database'); raise SystemExit(3)")
    said = str(caught.value)
    assert "part did not start: it ended" in said
    assert str(started.log) in said
    assert "  no such database" in said


def test_a_part_that_never_answers_is_given_up(started: Starter) -> None:
    with pytest.raises(ClusterError, match="does not answer after 0 s"):
        started("import time; time.sleep(600)", timeout_s=0)


def test_an_answer_from_another_does_not_make_a_dead_part_ready(started: Starter) -> None:
    with pytest.raises(ClusterError, match="it ended"):
        started(f"print({READY!r}, flush=True); raise SystemExit(1)", waits=True)


def test_words_of_an_earlier_start_do_not_count(started: Starter) -> None:
    kill(started(SLEEP))
    with pytest.raises(ClusterError) as caught:
        started("raise SystemExit('other words')")
    assert "other words" in str(caught.value)
    assert f"  {READY}" not in str(caught.value)


def test_a_part_has_no_input_and_a_session_of_its_own(started: Starter) -> None:
    part = started(SLEEP)
    assert os.getsid(part.pid) == part.pid != os.getsid(0)
    assert Path(f"/proc/{part.pid}/fd/0").readlink() == Path(os.devnull)
