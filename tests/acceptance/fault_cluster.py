"""A cluster of deploy/local with two controllers: what the fault tests break in it, and ask of it.

Jobs go in by the command line; what became of them is asked of PostgreSQL, the artifact store and
MLflow themselves.
"""

import json
import os
import re
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import psycopg

from deploy.local.cluster import Cluster
from deploy.local.processes import Service, spawn, wait_ready
from tests.acceptance.checkpoints import jobs_of_checkpoints
from tests.acceptance.conftest import TUTTI
from tests.tiny import keeps_row_bits, make_tiny_base, write_task

LEASE_S = 15
CONTROLLERS = ("controller-1", "controller-2")
SETTINGS = {
    "OMP_NUM_THREADS": "1",
    "TUTTI_LEASE_S": str(LEASE_S),
    "TUTTI_CHECKPOINT_S": "0.5",
    "TUTTI_GANG_IDLE_S": "600",
}
DEADLINE_S = 240.0
_WORKER_LOG = re.compile(r"/(gang-\w+)/worker-(\d+)\.log$")
Seen = TypeVar("Seen")


class Worker(NamedTuple):
    """A training worker's process."""

    gang: str
    rank: int
    pid: int


class Sort(NamedTuple):
    """What of a task decides its result; its name does not."""

    seed: int
    steps: int


def wait_until(what: str, look: Callable[[], Seen | None], deadline_s: float = DEADLINE_S) -> Seen:
    """Look until there is something; a database that is away has nothing."""
    deadline = time.monotonic() + deadline_s
    while True:
        with suppress(psycopg.OperationalError):
            if seen := look():
                return seen
        assert time.monotonic() < deadline, f"never came: {what}"
        time.sleep(0.1)


@dataclass(frozen=True)
class FaultCluster:
    """`cluster` with both of CONTROLLERS; `folder` holds specs and data."""

    cluster: Cluster
    folder: Path
    #: Leftovers of earlier faults.
    seen: set[str] = field(default_factory=set)

    @property
    def env(self) -> dict[str, str]:
        return {**self.cluster.process_env(), **SETTINGS}

    def tutti(self, *arguments: object) -> str:
        """What a command prints; it must succeed."""
        done = subprocess.run(
            [str(TUTTI), *map(str, arguments)],
            env=self.env,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=400,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def json(self, *arguments: object) -> Any:
        return json.loads(self.tutti(*arguments, "--json"))

    def ask(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """Ask PostgreSQL itself."""
        url = self.cluster.env()["TUTTI_DATABASE_URL"]
        with psycopg.connect(url, connect_timeout=5) as connection:
            return connection.execute(query, values).fetchall()

    # Its parts.

    def repair(self) -> None:
        """Start what does not run."""
        self.cluster.start()
        self.start_controllers()

    def start_controllers(self) -> None:
        begun = []
        for name in CONTROLLERS:
            part = self.cluster.parts.get(name)
            if part is not None and part.is_alive:
                continue
            service = Service(name, (str(TUTTI), "controller"), self.env, _is_up)
            log = self.cluster.log(name)
            log.touch()
            size = log.stat().st_size
            home = self.cluster.home
            begun.append((service, spawn(service, log, home, home / "parts"), log, size))
        for service, part, log, size in begun:
            wait_ready(service, part, log, size, timeout_s=120)

    @property
    def leader(self) -> str | None:
        """Which of CONTROLLERS leads."""
        holders = self.ask("SELECT holder FROM leadership WHERE name = 'controller'")
        pids = [int(holder.split(":")[1]) for (holder,) in holders if holder]
        parts = [part for name, part in self.cluster.parts.items() if name in CONTROLLERS]
        return next((part.name for part in parts if part.is_alive and part.pid in pids), None)

    @property
    def workers(self) -> list[Worker]:
        """The training workers that run, by rank."""
        found = []
        for proc in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                target = str((proc / "fd/1").readlink())
                named = _WORKER_LOG.search(target)
                if named and target.startswith(str(self.cluster.home)):
                    found.append(Worker(named[1], int(named[2]), int(proc.name)))
        return sorted(found, key=lambda worker: worker.rank)

    # Its jobs.

    def submit(self, sorts: dict[str, Sort], *options: object) -> dict[str, str]:
        """Submit a task of each sort; job ids by task."""
        specs = [self.write(task, sort) for task, sort in sorts.items()]
        return {job["task"]: job["id"] for job in self.json("submit", *specs, *options)}

    def write(self, task: str, sort: Sort) -> Path:
        training = {"steps": sort.steps, "batch_size": 4, "learning_rate": 0.01, "seed": sort.seed}
        evaluation = {"every": max(2, sort.steps // 2)}
        return write_task(self.folder, task, training=training, evaluation=evaluation)

    def step(self, job_id: str) -> int:
        """The step that a job has told last."""
        ((progress,),) = self.ask("SELECT progress FROM jobs WHERE id = %s", job_id)
        return int(progress.get("step", 0))

    def wait_step(self, jobs: Sequence[str], step: int) -> None:
        """Until all of the jobs have come to a step; none of them may have ended."""
        wait_until(f"step {step}", lambda: all(self.step(job) >= step for job in jobs))
        states = self.states(jobs)
        assert states <= {"admitted", "running"}, f"too fast to be broken: {states}"

    def states(self, jobs: Sequence[str]) -> set[str]:
        return {state for (state,) in self.ask(f"SELECT state FROM jobs WHERE id IN {_in(jobs)}")}

    def counts(self, jobs: Sequence[str]) -> dict[str, int]:
        """How many of the jobs are in each state."""
        query = f"SELECT state, count(*) FROM jobs WHERE id IN {_in(jobs)} GROUP BY state"
        return dict(self.ask(query))

    def wait_done(self, jobs: Sequence[str], deadline_s: float = DEADLINE_S) -> None:
        over = {"succeeded", "failed", "cancelled"}
        wait_until("their ends", lambda: self.states(jobs) <= over, deadline_s)

    def wait_quiet(self, quiet_s: float = 8.0) -> None:
        """Until no checkpoint has been stored for so long: nobody trains."""
        since, before = time.monotonic(), self.stored
        deadline = since + DEADLINE_S
        while time.monotonic() < since + quiet_s:
            assert time.monotonic() < deadline, "training goes on without a lease"
            if (now := self.stored) != before:
                since, before = time.monotonic(), now
            time.sleep(0.2)

    def places(self, job_id: str) -> list[tuple[int, int]]:
        """The workers that took a job up, one after the other: rank and world size."""
        query = "SELECT text FROM job_log WHERE job_id = %s ORDER BY number"
        lines = " ".join(text for (text,) in self.ask(query, job_id))
        return [(int(r), int(n)) for r, n in re.findall(r"on worker (\d+) of (\d+)", lines)]

    def attempts(self, job_id: str) -> list[tuple[str | None, str | None]]:
        """Outcome and cause of each attempt."""
        query = "SELECT outcome, cause FROM attempts WHERE job_id = %s ORDER BY number"
        return [(outcome, cause) for outcome, cause in self.ask(query, job_id)]

    def result(self, task: str) -> str:
        """The digest of a task's only version's weights."""
        query = "SELECT artifacts FROM prompt_versions WHERE task = %s"
        ((artifacts,),) = self.ask(query, task)
        return str(artifacts["encoder"]["digest"])

    # What there must be in the end.

    @property
    def stored(self) -> set[str]:
        """Digests of all that is in the artifact store."""
        return {file.name for file in self.store.glob("sha256/*/*")}

    @property
    def store(self) -> Path:
        return self.cluster.home / "artifacts"

    def leftovers(self) -> set[str]:
        """Stored artifacts that nothing refers to: no version, no data set, no log."""
        rows = self.ask("SELECT artifacts, lineage FROM prompt_versions")
        known = {each["digest"] for artifacts, _ in rows for each in artifacts.values()}
        known |= {digest for _, lineage in rows for digest in lineage["datasets"].values()}
        known |= {digest for (digest,) in self.ask("SELECT log FROM jobs")}
        held = "SELECT checkpoint FROM jobs WHERE state NOT IN ('succeeded','failed','cancelled')"
        known |= {digest for (digest,) in self.ask(held)}
        return self.stored - known

    def check(
        self, sorts: dict[str, Sort], expected: dict[Sort, str], max_leftovers: int | None = 0
    ) -> None:
        """Each task is one version, told to MLflow once, with the weights of the undisturbed run
        (to the bit, where kernels allow it); no job was ever held twice at a time. A checkpoint
        that was stored and never told, for its worker or controller was killed, may be left; it is
        whole."""
        jobs = [job for job in self.json("jobs", "list", "--limit", 1000) if job["task"] in sorts]
        told = {job["task"]: (job["state"], job["version"], job["error"]) for job in jobs}
        assert told == dict.fromkeys(sorts, ("succeeded", 1, None))
        assert len(jobs) == len(sorts)
        listed = [each["ref"] for each in self.json("prompts", "list", "--limit", 1000)]
        assert sorted(ref for ref in listed if ref.partition("@")[0] in sorts) == sorted(
            f"{task}@1" for task in sorts
        )
        results = {task: self.result(task) for task in sorts}
        assert not keeps_row_bits() or results == {t: expected[sort] for t, sort in sorts.items()}
        self.check_attempts()
        self.wait_told()
        new = self.leftovers() - self.seen
        self.seen.update(new)
        assert set(jobs_of_checkpoints(self.store, new)) <= {job["id"] for job in jobs}
        if max_leftovers is not None:
            assert len(new) <= max_leftovers, f"{len(new)} checkpoints are nobody's"

    def check_collected(self) -> None:
        """What faults left, `tutti gc` finds and removes, and nothing else."""
        self.wait_quiet()
        kept = self.stored - self.leftovers()
        for _ in range(2):  # marked, and a second later removed
            self.tutti("gc", "--delete", "--grace", "1s")
            time.sleep(1)
        assert self.stored == kept
        self.seen.clear()

    def check_attempts(self) -> None:
        """One attempt after the other, under epochs that grow; the last one succeeded."""
        twice = """SELECT a.job_id FROM attempts a JOIN attempts b ON a.job_id = b.job_id
            WHERE a.number < b.number AND
            (a.finished_at IS NULL OR a.finished_at > b.started_at OR a.epoch >= b.epoch)"""
        assert self.ask(twice) == []
        ends = """SELECT job_id, count(*) FILTER (WHERE a.outcome = 'succeeded')
            FROM attempts a JOIN jobs ON id = job_id WHERE state = 'succeeded' GROUP BY job_id"""
        assert all(num == 1 for _, num in self.ask(ends))

    def wait_told(self) -> None:
        """Until MLflow knows everything and logs are archived; each version must be one run."""
        pending = "SELECT kind, last_error FROM outbox WHERE delivered_at IS NULL"
        wait_until("MLflow is told", lambda: not self.ask(pending))
        wait_until("archived logs", lambda: not self.ask("SELECT 1 FROM job_log LIMIT 1"))
        links = self.ask("SELECT run_id FROM mlflow_links")
        runs = self.mlflow(
            "runs/search", {"experiment_ids": self._experiments(), "max_results": 9999}
        )
        ids = sorted(run["info"]["run_id"] for run in runs.get("runs", ()))
        assert ids == sorted(run_id for (run_id,) in links)
        assert {run["info"]["status"] for run in runs["runs"]} == {"FINISHED"}

    def _experiments(self) -> list[str]:
        found = self.mlflow("experiments/search", {"max_results": 1000})
        return [each["experiment_id"] for each in found["experiments"]]

    def mlflow(self, path: str, body: dict[str, Any]) -> Any:
        """Ask the server itself."""
        base = self.cluster.env()["TUTTI_MLFLOW_TRACKING_URI"]
        request = urllib.request.Request(
            f"{base}/api/2.0/mlflow/{path}",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=60) as reply:
            return json.load(reply)


@contextmanager
def fault_cluster(root: Path) -> Iterator[FaultCluster]:
    """Start all of it, with the tiny base."""
    cluster = Cluster(root / "cluster")
    folder = root / "tasks"
    folder.mkdir()
    try:
        cluster.start(has_controller=False)
        made = FaultCluster(cluster, folder)
        made.tutti("base", "add", "tiny", make_tiny_base(root / "tiny"))
        made.start_controllers()
        yield made
    finally:
        if kept := os.environ.get("TUTTI_FAULT_LOGS"):  # to look at after a failure
            subprocess.run(["cp", "-rT", root / "cluster" / "logs", kept], check=False)
            subprocess.run(
                ["cp", "-rT", root / "cluster" / "tutti" / "logs", f"{kept}/gangs"], check=False
            )
        cluster.stop()


def _is_up(pid: int, said: str) -> bool:
    return "the controller is up" in said


def _in(values: Sequence[str]) -> str:
    return "(" + ", ".join(f"'{value}'" for value in values) + ")"
