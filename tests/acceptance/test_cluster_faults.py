"""Breaks the parts of a real cluster on purpose while jobs run, one cluster for all of it; what is
in the database, the artifact store and MLflow at the end is what an undisturbed run leaves."""

import os
import random
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from deploy.local.processes import send
from tests.acceptance.conftest import TUTTI
from tests.acceptance.fault_cluster import (
    CONTROLLERS,
    FaultCluster,
    Sort,
    fault_cluster,
    wait_until,
)

pytestmark = [
    pytest.mark.ray,
    pytest.mark.postgres,
    pytest.mark.faults,
    pytest.mark.timeout(900),
]
LONG_STEPS, SHORT_STEPS = 1500, 150
#: The soak test: how many jobs, for how long something is killed, and how often (s).
SOAK_JOBS = int(os.environ.get("TUTTI_SOAK_JOBS", "60"))
SOAK_S = float(os.environ.get("TUTTI_SOAK_S", "120"))
SOAK_PAUSE_S = 15.0
SORTS = [Sort(1, LONG_STEPS), Sort(2, LONG_STEPS), *(Sort(n, SHORT_STEPS) for n in range(1, 5))]
Expected = dict[Sort, str]


@pytest.fixture(scope="module")
def whole() -> Iterator[FaultCluster]:
    """Not in pytest's folders: PostgreSQL has a user of its own, whom they shut out."""
    with tempfile.TemporaryDirectory(prefix="tutti-faults-") as folder:
        Path(folder).chmod(0o755)
        with fault_cluster(Path(folder)) as made:
            yield made


@pytest.fixture(scope="module")
def expected(whole: FaultCluster) -> Expected:
    """The results of each sort of task when nothing happens."""
    sorts = {f"calm-{s.seed}-{s.steps}": s for s in SORTS}
    whole.submit(sorts, "--wait")
    results = {sort: whole.result(task) for task, sort in sorts.items()}
    whole.check(sorts, results)
    return results


@pytest.fixture
def cluster(whole: FaultCluster, expected: Expected) -> FaultCluster:
    """Whole again, whatever the test before did to it."""
    whole.repair()
    return whole


def test_of_two_controllers_one_leads_and_the_other_takes_over(
    cluster: FaultCluster, expected: Expected
) -> None:
    sorts = {f"taken-over-{seed}": Sort(seed, LONG_STEPS) for seed in (1, 2)}
    jobs = cluster.submit(sorts)
    cluster.wait_step(list(jobs.values()), LONG_STEPS // 10)
    first = wait_until("a leader", lambda: cluster.leader)
    second = next(name for name in CONTROLLERS if name != first)
    orphans = cluster.workers
    cluster.cluster.kill(first)
    wait_until("another leader", lambda: cluster.leader == second)
    wait_until("its gang's end", lambda: not {*orphans} & {*cluster.workers})
    cluster.start_controllers()  # one that comes back does not lead
    cluster.wait_done(list(jobs.values()))
    assert cluster.leader == second
    cluster.check(sorts, expected, max_leftovers=4)
    for job in jobs.values():
        assert cluster.attempts(job) == [("reclaimed", "the holder died"), ("succeeded", None)]
        holders = "SELECT holder FROM attempts WHERE job_id = %s ORDER BY number"
        pids = [int(holder.split(":")[1]) for (holder,) in cluster.ask(holders, job)]
        assert pids[1] == cluster.cluster.parts[second].pid != pids[0]
        assert "attempt 1 lost: the holder died; queued again" in cluster.tutti("jobs", "show", job)


def test_what_a_worker_says_that_slept_through_its_lease_is_refused(
    cluster: FaultCluster, expected: Expected
) -> None:
    sorts = {f"slept-{seed}": Sort(seed, LONG_STEPS) for seed in (1, 2)}
    jobs = cluster.submit(sorts)
    cluster.wait_step(list(jobs.values()), LONG_STEPS // 10)
    job, other = jobs.values()
    rank = cluster.places(job)[-1][0]
    sleeper = next(worker for worker in cluster.workers if worker.rank == rank)
    os.kill(sleeper.pid, signal.SIGSTOP)
    try:
        wait_until("another worker", lambda: cluster.places(job)[-1][0] != rank)
    finally:
        os.kill(sleeper.pid, signal.SIGCONT)
    cluster.wait_done(list(jobs.values()))
    cluster.check(sorts, expected, max_leftovers=1)
    assert cluster.attempts(job) == [
        ("reclaimed", "the holder's lease expired"),
        ("succeeded", None),
    ]
    assert cluster.attempts(other) == [("succeeded", None)]
    assert "the holder's lease expired; queued again" in cluster.tutti("jobs", "show", job)


def test_training_goes_on_while_the_database_is_away_for_less_than_a_lease(
    cluster: FaultCluster, expected: Expected
) -> None:
    sorts = {f"short-{seed}": Sort(seed, LONG_STEPS) for seed in (1, 2)}
    jobs = cluster.submit(sorts)
    cluster.wait_step(list(jobs.values()), LONG_STEPS // 10)
    cluster.cluster.kill("postgres")
    before = cluster.stored
    wait_until("another checkpoint", lambda: cluster.stored - before)
    cluster.cluster.start()
    cluster.wait_done(list(jobs.values()))
    cluster.check(sorts, expected)
    assert {each for job in jobs.values() for each in cluster.attempts(job)} == {
        ("succeeded", None)
    }


def test_jobs_stop_while_the_database_is_away_for_longer_than_a_lease(
    cluster: FaultCluster, expected: Expected
) -> None:
    sorts = {f"away-{seed}": Sort(seed, LONG_STEPS) for seed in (1, 2)}
    jobs = cluster.submit(sorts)
    cluster.wait_step(list(jobs.values()), LONG_STEPS // 10)
    cluster.cluster.kill("postgres")
    cluster.wait_quiet()
    cluster.cluster.start()
    cluster.wait_done(list(jobs.values()))
    cluster.check(sorts, expected)
    for job in jobs.values():
        (outcome, cause), *more, last = cluster.attempts(job)
        assert (outcome, cause) in {
            ("released", "the database was away for longer than the lease"),
            ("reclaimed", "the holder's lease expired"),
        }
        assert (more, last) == ([], ("succeeded", None))


def test_a_gang_goes_on_with_fewer_workers_and_then_with_more(
    cluster: FaultCluster, expected: Expected
) -> None:
    # So many that they last until the lost node is back.
    sorts = {f"resized-{number}": Sort(1 + number % 2, LONG_STEPS) for number in range(24)}
    jobs = cluster.submit(sorts)
    cluster.wait_step(list(jobs.values()), LONG_STEPS // 10)
    victim = cluster.workers[1]
    assert victim.rank == 1
    os.kill(victim.pid, signal.SIGKILL)
    first = next(iter(jobs.values()))

    def worlds() -> list[int]:
        return [size for _, size in cluster.places(first)]

    wait_until("two workers again", lambda: worlds() == [2, 2])
    cluster.cluster.kill("ray-worker-1")
    wait_until("one worker", lambda: worlds()[-1] == 1)
    cluster.cluster.start()
    wait_until("two workers", lambda: worlds()[-1] == 2)
    assert cluster.states(list(jobs.values())) == {"running"}
    cluster.wait_done(list(jobs.values()))
    cluster.check(sorts, expected, max_leftovers=72)
    for job in jobs.values():
        assert cluster.attempts(job) == [("succeeded", None)]
    told = cluster.tutti("jobs", "show", first)
    assert "the gang's workers start again (a worker process or its machine died)" in told
    assert "the gang's workers start again: their number changes" in told
    assert "goes on after step" in told


def test_a_job_outlives_the_process_that_submitted_it(
    cluster: FaultCluster, expected: Expected
) -> None:
    sorts = {"orphan": Sort(1, LONG_STEPS)}
    spec = cluster.write("orphan", sorts["orphan"])
    process = subprocess.Popen(
        [str(TUTTI), "submit", str(spec), "--wait"], env=cluster.env, cwd=cluster.folder
    )
    query = "SELECT id FROM jobs WHERE task = 'orphan'"
    ((job,),) = wait_until("the submission", lambda: cluster.ask(query))
    process.kill()
    process.wait()
    cluster.wait_done([job])
    assert cluster.submit(sorts) == {"orphan": job}
    cluster.check(sorts, expected)
    assert cluster.attempts(job) == [("succeeded", None)]


def test_many_jobs_are_done_once_each_while_something_is_killed_again_and_again(
    cluster: FaultCluster, expected: Expected
) -> None:
    seed = int(os.environ.get("TUTTI_SOAK_SEED") or random.randrange(10_000))
    print(f"TUTTI_SOAK_SEED={seed}")
    sorts = {f"soak-{i:03}": SORTS[2 + i % 4] for i in range(SOAK_JOBS)}
    jobs = list(cluster.submit(sorts, "--max-attempts", 1000).values())
    wait_until("training", lambda: cluster.counts(jobs).get("running"))
    chosen, until = random.Random(seed), time.monotonic() + SOAK_S
    while time.monotonic() < until:
        next_fault = time.monotonic() + chosen.uniform(0.5, 1.5) * SOAK_PAUSE_S
        wait_until("time or the end", partial(is_over, cluster, jobs, next_fault))
        if cluster.states(jobs) == {"succeeded"}:
            break
        print(cluster.counts(jobs), "and then:", break_something(cluster, chosen), flush=True)
        cluster.repair()
    cluster.wait_done(jobs, deadline_s=600)
    # How many depends on how long workers went on before they heard that nobody listens.
    cluster.check(sorts, expected, max_leftovers=None)
    cluster.check_collected()


def is_over(cluster: FaultCluster, jobs: list[str], moment: float) -> bool:
    return time.monotonic() > moment or cluster.states(jobs) == {"succeeded"}


def break_something(cluster: FaultCluster, chosen: random.Random) -> str:
    """Kill a part, or a worker if there is one; what it was."""
    parts = ("worker", "worker", *CONTROLLERS, "ray-worker-1", "ray-worker-2", "postgres")
    name = chosen.choice(parts)
    if name != "worker":
        cluster.cluster.kill(name)
    elif workers := cluster.workers:
        victim = chosen.choice(workers)
        send(victim.pid, signal.SIGKILL)
        name = f"worker {victim.rank}"
    return name
