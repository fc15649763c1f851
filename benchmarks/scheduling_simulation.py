"""How do the scheduling policies do on a thousand workers and a hundred thousand jobs?

Run as `python -m benchmarks.scheduling_simulation`. The policies are the controller's own
(`scheduling/gang_plan.py`); time and workers are simulated, the seconds of planning are real. A
worker computes `--rate` positions a second, shared by its gang's jobs; a gang takes `--start`
seconds to come up; the plan is made every `--tick` seconds, with the whole queue as its input.
"""

import argparse
import random
import statistics
import sys
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from benchmarks.machine import Surroundings, machine_notes
from benchmarks.report import at_most, document, table, write_results
from orchestrator.domain.job import QueuedJob
from orchestrator.scheduling.decisions import AdmitJobs, Decision, DrainGang, GangKey, StartGang
from orchestrator.scheduling.gang_plan import GangView, Limits, plan

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
MAX_PLAN_S = 1.0


@dataclass
class _Gang:
    key: GangKey
    num_workers: int
    started: float
    up_at: float
    is_open: bool = True
    left: dict[str, float] = field(default_factory=dict)  # positions still to compute, by job
    busy_at: float = 0.0


@dataclass
class Simulation:
    """A cluster in memory. `waits` are seconds from submission to admission."""

    arguments: argparse.Namespace
    now: float = 0.0
    num_started: int = 0
    ready: dict[str, QueuedJob] = field(default_factory=dict)
    held: dict[str, QueuedJob] = field(default_factory=dict)
    gangs: dict[str, _Gang] = field(default_factory=dict)
    ends: dict[str, float] = field(default_factory=dict)
    waits: dict[str, float] = field(default_factory=dict)
    plan_s: list[float] = field(default_factory=list)
    busy_worker_s: float = 0.0

    def tick(self, limits: Limits) -> None:
        """Plan, carry it out, and let the workers work."""
        views = [
            GangView(
                name,
                gang.key,
                gang.num_workers,
                self.now - gang.started,
                0.0 if gang.left else self.now - gang.busy_at,
                gang.is_open,
            )
            for name, gang in self.gangs.items()
        ]
        ready = sorted(self.ready.values(), key=lambda job: (-job.priority, job.created_at, job.id))
        held = list(self.held.values())
        before = time.perf_counter()
        decisions = plan(ready, held, [], views, limits, EPOCH + timedelta(seconds=self.now))
        self.plan_s.append(time.perf_counter() - before)
        for decision in decisions:
            self._carry_out(decision)
        self._work(self.arguments.tick)

    def _carry_out(self, decision: Decision) -> None:
        if isinstance(decision, StartGang):
            self.num_started += 1
            name = f"gang-{self.num_started}"
            up_at = self.now + self.arguments.start
            self.gangs[name] = _Gang(decision.key, decision.num_workers, self.now, up_at)
            self._admit(name, decision.job_ids)
        elif isinstance(decision, AdmitJobs):
            self._admit(decision.gang, decision.job_ids)
        else:
            gang = self.gangs[decision.gang]
            gang.is_open = False
            if isinstance(decision, DrainGang):
                for job_id in gang.left:
                    self.ready[job_id] = replace(self.held.pop(job_id), gang=None)
                gang.left.clear()

    def _admit(self, name: str, job_ids: tuple[str, ...]) -> None:
        for job_id in job_ids:
            job = self.held[job_id] = replace(self.ready.pop(job_id), gang=name)
            self.gangs[name].left[job_id] = job.num_positions * job.num_steps
            self.waits.setdefault(job_id, self.now - (job.created_at - EPOCH).total_seconds())

    def _work(self, seconds: float) -> None:
        """Each worker's rate is shared by the jobs of its gang; a job has one worker at most."""
        self.now += seconds
        for name, gang in list(self.gangs.items()):
            if gang.left and self.now > gang.up_at:
                active = min(gang.num_workers, len(gang.left))
                self.busy_worker_s += active * seconds
                share = self.arguments.rate * active * seconds / len(gang.left)
                for job_id in list(gang.left):
                    gang.left[job_id] -= share
                    if gang.left[job_id] <= 0:
                        del gang.left[job_id], self.held[job_id]
                        self.ends[job_id] = self.now
                gang.busy_at = self.now
            elif not gang.left and not gang.is_open:
                del self.gangs[name]


def make_jobs(arguments: argparse.Namespace) -> list[QueuedJob]:
    """Jobs of many owners, bases and sizes; half are there at the start, half come in an hour."""
    rng = random.Random(arguments.seed)
    jobs = []
    for index in range(arguments.jobs):
        late = rng.uniform(0, 3600) if index % 2 else 0.0
        owner = f"owner-{int(rng.paretovariate(1.0)) % arguments.owners}"
        jobs.append(
            QueuedJob(
                id=f"{index:06}",
                task=f"task-{index}",
                owner=owner,
                priority=rng.choice((0, 0, 0, 0, 0, 0, 0, 0, 1, 2)),
                created_at=EPOCH + timedelta(seconds=late),
                base_fingerprint=f"base-{rng.randrange(arguments.bases)}",
                zero_stage=None,
                is_data_parallel=False,
                num_positions=min(4096.0, rng.lognormvariate(5.7, 0.5)),
                num_steps=rng.choice((50, 100, 200, 400)),
            )
        )
    return jobs


def simulate(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run until all jobs are done; the figures."""
    jobs = sorted(make_jobs(arguments), key=lambda job: job.created_at)
    limits = Limits(num_workers=arguments.workers, zero_stage=0)
    simulation = Simulation(arguments)
    coming = iter(jobs)
    due = next(coming, None)
    while len(simulation.ends) < len(jobs):
        while due is not None and due.created_at <= EPOCH + timedelta(seconds=simulation.now):
            simulation.ready[due.id] = due
            due = next(coming, None)
        simulation.tick(limits)
    work = sum(job.num_positions * job.num_steps for job in jobs) / arguments.rate
    waits = {
        priority: statistics.median(simulation.waits[j.id] for j in jobs if j.priority == priority)
        for priority in sorted({job.priority for job in jobs}, reverse=True)
    }
    cuts = statistics.quantiles(simulation.plan_s, n=100)
    return {
        "makespan_s": simulation.now,
        "ideal_s": work / arguments.workers,
        "busy_share": simulation.busy_worker_s / (simulation.now * arguments.workers),
        "gangs_started": simulation.num_started,
        "num_plans": len(simulation.plan_s),
        "plan_s": {"median": cuts[49], "p99": cuts[98], "max": max(simulation.plan_s)},
        "median_wait_s": waits,
        "owners": len(Counter(job.owner for job in jobs)),
    }


def _markdown(facts: dict[str, Any]) -> str:
    found, asked = facts["found"], facts["asked"]
    plans = found["plan_s"]
    rows = [
        ["all jobs done after", f"{found['makespan_s']:.0f} s"],
        ["the same work spread evenly, nothing lost", f"{found['ideal_s']:.0f} s"],
        ["workers busy", f"{found['busy_share']:.0%}"],
        ["gangs started", str(found["gangs_started"])],
        ["plans made", str(found["num_plans"])],
        ["seconds of a plan: median, p99, most", _cuts(plans)],
    ]
    rows += [
        [f"median wait at priority {priority}", f"{wait:.0f} s"]
        for priority, wait in found["median_wait_s"].items()
    ]
    title = f"{asked['jobs']} jobs on {asked['workers']} workers, simulated"
    verdict = [f"The longest plan: {at_most(plans['max'], MAX_PLAN_S, ' s')}."]
    notes = [
        f"{asked['bases']} bases, {found['owners']} owners, {asked['rate']:g} positions a second",
        f"a gang starts in {asked['start']:g} s; a plan every {asked['tick']:g} s",
        *machine_notes(facts),
    ]
    return document(title, table(["", ""], rows, 1), verdict, notes=notes)


def _cuts(plans: dict[str, float]) -> str:
    return ", ".join(f"{plans[name]:.3f}" for name in ("median", "p99", "max"))


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scheduling_simulation", description=__doc__
    )
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--bases", type=int, default=20)
    parser.add_argument("--owners", type=int, default=50)
    parser.add_argument("--rate", type=float, default=500.0, help="positions a second, a worker")
    parser.add_argument("--start", type=float, default=30.0, help="seconds of a gang's start")
    parser.add_argument("--tick", type=float, default=10.0, help="seconds between two plans")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    surroundings = Surroundings(1)
    found = simulate(arguments)
    asked = {name: value for name, value in vars(arguments).items() if name != "output"}
    facts = surroundings.facts() | {"asked": asked, "found": found}
    write_results(arguments.output, "scheduling_simulation", facts, _markdown(facts))
    print(_markdown(facts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
