"""How much more do two workers train than one, a core and a thread each?

Run as `python -m benchmarks.gang_scaling`. Real parts throughout (live_gang.py): gangs of one and
of two workers are started in turn, train the same tasks, and are counted for a while once every
task has taken WARM_UP steps: until then a worker also computes the contexts of texts that it meets
for the first time. Efficiency is the rate of two over twice the rate of one, at ZeRO stage 0 (each
worker holds the base) and 3 (it is split, and every layer gathered for every pass). A step costs a
worker something whatever its tasks are, so it depends on how many there are: a gang grows when its
workers are busy (TUTTI_GROW_POSITIONS), not with 8 small tasks. Beside them stands the machine's
own ceiling: one process and two (tutti_workers.py) that step equal tasks each on a core and have
nothing to do with each other; where they slow each other down, no gang can do better.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.base_folder import base_name
from benchmarks.command import new_parser, positive, run
from benchmarks.live_gang import RayMeter, Steps, make_spec, serving, wait_until
from benchmarks.machine import Surroundings, machine_notes
from benchmarks.report import at_least, document, seconds, table, write_results
from benchmarks.tutti_workers import TuttiWorkers
from benchmarks.worker_rates import MIN_EFFICIENCY, WORKERS, Rates, efficiency
from benchmarks.workload import Workload, make_tasks
from orchestrator.training.worker import MAX_POSITIONS

CEILING_TASKS = 8  # of each process beside the gangs
WARM_UP = 5  # steps in which 16 tasks, with orders of their own, meet nearly all of 133 texts
VOCAB_SIZE = 49_152  # of random rows; any base of at least as many tokens


def measure(folder: Path, arguments: argparse.Namespace) -> bool:
    surroundings = Surroundings(arguments.threads)
    rates: dict[int, Rates] = {stage: {n: [] for n in WORKERS} for stage in arguments.stages}
    with RayMeter() as ray:
        for _ in range(arguments.repeats):
            for stage in arguments.stages:
                for num_workers in WORKERS:
                    rate = _rate(folder, arguments, stage, num_workers)
                    rates[stage][num_workers].append(rate)
                    print(f"stage {stage}, {num_workers} worker(s): {rate:.3f} steps/s", flush=True)
        load = surroundings.facts(ray.seconds())
    facts = load | {
        "ceiling": _ceiling(folder, arguments),
        "base": base_name(folder),
        "tasks": arguments.tasks,
        "counted_s": arguments.seconds,
        "rates": rates,
    }
    write_results(arguments.output, "gang_scaling", facts, _markdown(facts))
    print(_markdown(facts))
    return True


def _rate(base: Path, arguments: argparse.Namespace, stage: int, num_workers: int) -> float:
    """Optimizer steps of tasks a second, in a gang of `num_workers` with a thread each."""
    shape = {
        "num_workers": num_workers,
        "min_workers": num_workers,
        "worker_threads": 1,
        "zero_stage": stage,
        "step_positions": 10**6,  # all tasks fit into one gang
        "grow_positions": 10**6,
    }
    with tempfile.TemporaryDirectory() as name, Steps().listening() as steps:
        home = Path(name)
        specs = [make_spec(home, f"task-{i}", 100_000, seed=i) for i in range(arguments.tasks)]
        with serving(home, base, **shape) as tutti:
            ids = [each.job.id for each in tutti.submit(specs)]
            wait_until(
                lambda: all(len(steps.taken.get(i, ())) > WARM_UP for i in ids), "first steps"
            )
            (gang,) = tutti.gangs()
            if gang.num_workers != num_workers:
                raise RuntimeError(f"the gang has {gang.num_workers} workers, not {num_workers}")
            time.sleep(arguments.seconds)
            for job in ids:
                tutti.cancel(job)
        return sum(_steady_rate(times[WARM_UP:]) for times in steps.taken.values())


def _ceiling(base: Path, arguments: argparse.Namespace) -> Rates:
    """Tasks' steps a second of one lone process, and of two at the same time with as many tasks
    each."""
    shape = Workload(num_virtual_tokens=10, length_spread=0.0)
    rates: Rates = {n: [] for n in WORKERS}
    sides = {n: TuttiWorkers(base, n, MAX_POSITIONS) for n in WORKERS}
    for n, workers in sides.items():
        workers.open(make_tasks(shape, n * CEILING_TASKS, VOCAB_SIZE), shape)
        workers.step()  # warms up
    for _ in range(max(3, arguments.repeats)):
        for n, workers in sides.items():
            started = time.perf_counter()
            workers.step()
            rates[n].append(n * CEILING_TASKS / (time.perf_counter() - started))
    return rates


def _steady_rate(times: list[float]) -> float:
    """Steps a second between the first and the last that were heard of."""
    return (len(times) - 1) / (times[-1] - times[0])


def _markdown(facts: dict[str, Any]) -> str:
    rows = [
        [str(stage), *(seconds(rates[n]) for n in WORKERS), f"{efficiency(rates):.2f}"]
        for stage, rates in facts["rates"].items()
    ]
    ceiling = facts["ceiling"]
    rows.append(
        ["none: apart", *(seconds(ceiling[n]) for n in WORKERS), f"{efficiency(ceiling):.2f}"]
    )
    verdicts = [
        f"Stage {stage}: {at_least(efficiency(rates), MIN_EFFICIENCY, '')}."
        for stage, rates in facts["rates"].items()
        if stage == 0
    ]
    best = efficiency(ceiling)
    verdicts.append(f"Two processes apart from each other have {best:.2f} on this machine.")
    columns = ["ZeRO stage", "steps/s, 1 worker", "2 workers", "efficiency"]
    num_gangs = len(next(iter(facts["rates"].values()))[1])
    counted = (
        f"{facts['tasks']} tasks of 8 rows a step, counted for {facts['counted_s']} s in each of "
        f"{num_gangs} gangs; medians (least-most)"
    )
    notes = [facts["base"], counted, *machine_notes(facts)]
    return document("One worker and two", table(columns, rows), verdicts, notes=notes)


def main() -> int:
    parser = new_parser("gang_scaling", __doc__)
    parser.add_argument("--repeats", type=positive, default=3, help="gangs of each kind")
    parser.add_argument("--tasks", type=positive, default=32)
    parser.add_argument("--seconds", type=positive, default=30, help="counted in each gang")
    parser.add_argument("--stages", type=int, nargs="+", choices=(0, 3), default=(0, 3))
    return run(parser.parse_args(), measure)


if __name__ == "__main__":
    sys.exit(main())
