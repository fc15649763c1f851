"""Controllers on machines whose clocks are an hour off. With PostgreSQL nothing goes by a client's
clock. An SQLite database has no clock but that of the process that opens it (and one machine alone
opens it): there a wrong clock may take a job from a living holder, and the epoch's fence is what
still holds, so that nothing is done twice."""

import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import IO, Any

import pytest
from sqlalchemy import make_url

from orchestrator.domain.errors import StaleLease
from orchestrator.domain.gang import TaskOrder
from orchestrator.domain.job import JobState
from orchestrator.registry import dialect, migrate
from orchestrator.registry.database import Database
from orchestrator.registry.job_queue import JobQueue
from orchestrator.registry.prompt_registry import PromptRegistry
from tests.orchestrator.scheduling.conftest import submission, trained
from tests.postgres_server import postgres_server

LEASE_S = 5.0
HOUR_S = 3600
#: A controller whose one gang never ends; each step tells what it sees, until its input ends.
CONTROLLER = """
import datetime, json, sys, threading, time
url, holder, lease_s, off_s = sys.argv[1], sys.argv[2], float(sys.argv[3]), float(sys.argv[4])

class Wrong(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return super().now(tz) + datetime.timedelta(seconds=off_s)

right = time.time
time.time = lambda: right() + off_s
datetime.datetime = Wrong

from orchestrator.registry.database import Database
from orchestrator.registry.batch_book import BatchBook
from orchestrator.registry.gang_book import GangBook
from orchestrator.registry.job_queue import JobQueue
from orchestrator.registry.leadership import Leadership
from orchestrator.registry.prompt_registry import PromptRegistry
from orchestrator.scheduling.controller import Controller
from orchestrator.scheduling.gang_starter import Cluster, ControllerOptions
from orchestrator.scheduling.ledger import Ledger
from orchestrator.scheduling.gang_plan import Limits
from tests.orchestrator.scheduling.conftest import MemoryLauncher, plan_as_asked

database = Database(url)
queue, leadership = JobQueue(database), Leadership(database)
ledger = Ledger(queue, PromptRegistry(database), GangBook(database), BatchBook(database),
                lambda digest: None, "ann", lease_s, time.monotonic)
cluster = Cluster(MemoryLauncher(), lambda: None, plan_as_asked, lambda base: 256, lambda it: False)
options = ControllerOptions(holder, Limits(num_workers=2, zero_stage=0), "0.1.0")
controller = Controller(ledger, leadership, cluster, options)
over = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
while not over.wait(0.05):
    controller.step()
    print(json.dumps([controller.is_leading, controller.num_gangs, str(Wrong.now())]), flush=True)
"""


@pytest.fixture
def url() -> Iterator[str]:
    with postgres_server() as uri:
        server = make_url(uri).set(drivername="postgresql+psycopg")
        postgres = server.render_as_string(hide_password=False)
        migrate.upgrade(postgres)
        yield postgres


def start(url: str, holder: str, off_s: float) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", CONTROLLER, url, holder, str(LEASE_S), str(off_s)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def look(process: "subprocess.Popen[str]") -> tuple[bool, int, datetime]:
    """Its next word: whether it leads, its gangs, and what it takes the time for."""
    told: IO[str] | None = process.stdout
    assert told is not None
    is_leading, num_gangs, moment = json.loads(told.readline())
    return is_leading, num_gangs, datetime.fromisoformat(moment)


@pytest.mark.faults
@pytest.mark.postgres
@pytest.mark.timeout(180)
@pytest.mark.parametrize("first_off_s", [HOUR_S, -HOUR_S])
def test_clocks_an_hour_off_neither_end_leases_nor_keep_them(url: str, first_off_s: float) -> None:
    database = Database(url)
    queue = JobQueue(database)
    job, _ = queue.submit(submission(), "ann")
    first = start(url, "first", first_off_s)
    second: subprocess.Popen[str] | None = None
    try:
        while look(first)[:2] != (True, 1):
            pass
        assert abs(look(first)[2] - datetime.now() - timedelta(seconds=first_off_s)) < timedelta(
            minutes=5
        )
        second = start(url, "second", -first_off_s)
        since = queue.now()
        while queue.now() < since + timedelta(seconds=3 * LEASE_S):  # renewed, and not taken away
            assert look(first)[:2] == (True, 1)
            assert look(second)[:2] == (False, 0)
        held = queue.get(job.id)
        assert (held.state, held.attempts, held.epoch) == (JobState.RUNNING, 1, 1)
        killed_at = queue.now()
        first.kill()
        first.wait()
        while look(second)[:2] != (True, 1):  # each its own way takes a lease to end
            pass
        lost, taken = queue.attempts(job.id)
        assert (lost.outcome, lost.cause) == ("reclaimed", "the holder's lease expired")
        assert lost.finished_at is not None
        # The last renewal was up to one heartbeat before the kill, at most a second.
        waited_s = (lost.finished_at - killed_at).total_seconds()
        assert LEASE_S - 2 < waited_s < LEASE_S + 60
        assert (taken.holder, taken.epoch, taken.outcome) == ("second", 3, None)
    finally:
        for process in (first, second):
            if process is not None:
                process.kill()
                process.wait()
        database.close()


def test_wrong_clock_on_sqlite_takes_a_job_away_but_never_does_it_twice(
    queue: JobQueue, registry: PromptRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Fast(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> "Fast":
            return super().now(tz) + timedelta(seconds=HOUR_S)

    job, _ = queue.submit(submission(), "ann")
    _, slept = queue.claim([job.id], "right", 60)[job.id]
    order = TaskOrder(job.id, job.submission.spec, {}, job.submission.base_fingerprint, 1.0)
    with monkeypatch.context() as wrong:
        wrong.setattr(dialect, "datetime", Fast)
        assert [each.id for each in queue.reclaim(lambda holder: False)] == [job.id]
        _, lease = queue.claim([job.id], "fast", 60)[job.id]
        registry.complete(lease, trained(order), None, "ann")
    assert queue.heartbeat([slept], 60).lost.keys() == {job.id}
    with pytest.raises(StaleLease):
        registry.complete(slept, trained(order, accuracy=0.9), None, "ann")
    assert queue.get(job.id).state == JobState.SUCCEEDED
    assert len(registry.list(job.task)) == 1
