"""How soon does a submitted job take its first step: in a gang that is up, and in a fresh one?

Run as `python -m benchmarks.gang_latency`. Real parts throughout: SQLite, a controller, Ray Train,
DeepSpeed, two workers. Time runs from the commit of the submission to the moments at which the
controller hears that the job's first step begins (its rows are there, its slot is filled) and that
it has been taken. A fresh Ray Train run is a gang started for the one job, on a Ray cluster that is
up already; in the warm gang jobs come while it idles, and while other tasks train.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.base_folder import base_name
from benchmarks.command import new_parser, positive, run
from benchmarks.live_gang import RayMeter, Steps, make_spec, serving, wait_until
from benchmarks.machine import Surroundings, machine_notes
from benchmarks.report import at_least, at_most, document, table, write_results
from orchestrator.domain.job import JobState
from orchestrator.sdk import Tutti

MIN_RATIO, MAX_OVER_STEP_S = 30.0, 0.5
BEGINS, TAKEN = 0, 1
Latency = tuple[float, float]  # seconds until the first step begins, and until it is taken


def latency_s(tutti: Tutti, spec: Path, steps: Steps) -> Latency:
    """Submit, wait for the first step, and let the job end."""
    (submitted,) = tutti.submit([spec], force=True)
    started = time.perf_counter()
    job = submitted.job.id
    wait_until(lambda: job in steps.taken and tutti.job(job).state.is_terminal, "a first step")
    return steps.begins[job] - started, steps.taken[job][0] - started


def measure(folder: Path, arguments: argparse.Namespace) -> bool:
    surroundings = Surroundings(arguments.threads)
    with tempfile.TemporaryDirectory() as home, Steps().listening() as steps, RayMeter() as ray:
        found = {"fresh": _fresh(Path(home), folder, arguments, steps)}
        found |= _warm(Path(home), folder, arguments, steps)
        load = surroundings.facts(ray.seconds())
    facts = load | {
        "base": base_name(folder),
        "seconds": found,
        "step_s": statistics.median(steps.step_s),
        "others": arguments.others,
    }
    write_results(arguments.output, "gang_latency", facts, _markdown(facts))
    print(_markdown(facts))
    return True


def _fresh(home: Path, base: Path, arguments: argparse.Namespace, steps: Steps) -> list[Latency]:
    spec = make_spec(home, "newcomer", 3)  # a first step that no evaluation follows
    found = []
    with serving(home, base, gang_idle_s=0.0) as tutti:
        latency_s(tutti, spec, steps)  # starts Ray
        for _ in range(arguments.fresh):
            wait_until(lambda: not tutti.gangs(), "the gang's end")
            found.append(latency_s(tutti, spec, steps))
    return found


def _warm(
    home: Path, base: Path, arguments: argparse.Namespace, steps: Steps
) -> dict[str, list[Latency]]:
    """In one gang: idle first, then beside others. Leaves the others' steps in `steps.step_s`."""
    spec = make_spec(home, "newcomer", 3)
    repeats = range(arguments.repeats)
    with serving(home, base, gang_idle_s=3600.0) as tutti:
        latency_s(tutti, spec, steps)
        idle = [latency_s(tutti, spec, steps) for _ in repeats]
        others = [make_spec(home, f"other-{i}", 100_000) for i in range(arguments.others)]
        ids = [each.job.id for each in tutti.submit(others, force=True)]
        wait_until(lambda: all(_runs(tutti, job, steps) for job in ids), "the others' first steps")
        steps.step_s.clear()
        busy = [latency_s(tutti, spec, steps) for _ in repeats]
        for job in ids:
            tutti.cancel(job)
    return {"warm, idle": idle, "warm, busy": busy}


def _runs(tutti: Tutti, job: str, steps: Steps) -> bool:
    return job in steps.taken and tutti.job(job).state == JobState.RUNNING


def _markdown(facts: dict[str, Any]) -> str:
    step_s, found = facts["step_s"], facts["seconds"]
    cuts = {
        kind: [_cuts(moment) for moment in zip(*latencies, strict=True)]
        for kind, latencies in found.items()
    }
    rows = [
        [kind, str(len(found[kind])), *(f"{cut:.2f}" for each in moments for cut in each)]
        for kind, moments in cuts.items()
    ]
    ratios = [
        cuts["fresh"][moment][0] / cuts["warm, idle"][moment][0] for moment in (BEGINS, TAKEN)
    ]
    over = at_most(cuts["warm, busy"][BEGINS][1], step_s + MAX_OVER_STEP_S, " s")
    verdicts = [
        (
            f"Until the first step begins, fresh against warm and idle, medians: "
            f"{at_least(ratios[BEGINS], MIN_RATIO)}."
        ),
        f"Until it is taken: {ratios[TAKEN]:.1f}x (both sides hold the step itself).",
        (
            f"Beside {facts['others']} tasks whose steps take {step_s:.2f} s, until the first step "
            f"begins, p99, against a step + {MAX_OVER_STEP_S:g} s: {over}."
        ),
    ]
    columns = ["seconds until the first step", "jobs", "begins: p50", "p99", "most"]
    columns += ["is taken: p50", "p99", "most"]
    notes = [facts["base"], *machine_notes(facts)]
    return document("From submission to first step", table(columns, rows, 1), verdicts, notes=notes)


def _cuts(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, 99th percentile (nearest rank) and maximum."""
    ordered = sorted(values)
    rank = max(0, -(-99 * len(ordered) // 100) - 1)
    return statistics.median(ordered), ordered[rank], ordered[-1]


def main() -> int:
    parser = new_parser("gang_latency", __doc__)
    parser.add_argument("--fresh", type=positive, default=3, help="gangs started")
    parser.add_argument("--repeats", type=positive, default=30, help="jobs into the warm gang")
    parser.add_argument("--others", type=positive, default=4, help="tasks that train beside them")
    return run(parser.parse_args(), measure)


if __name__ == "__main__":
    sys.exit(main())
