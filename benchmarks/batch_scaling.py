"""How many more rows do two batch workers answer than one, a core and a thread each?

Run as `python -m benchmarks.batch_scaling`. A version is trained for a step and promoted; then
`tutti batch run`'s own path (Ray Data's actor pool, the ledger, parts on disk) answers one file of
distinct rows with one worker and with two, in turn. Counted is from when each worker is through
with its first shard until only as many shards are left: starting Ray and loading the base are no
part of it. The answers of all runs must be the same, to the byte.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.base_folder import base_name
from benchmarks.command import new_parser, positive, run
from benchmarks.live_gang import TASK, RayMeter, make_spec
from benchmarks.machine import Surroundings, machine_notes
from benchmarks.report import at_least, document, seconds, table, write_results
from benchmarks.worker_rates import MIN_EFFICIENCY, WORKERS, Rates, efficiency
from orchestrator.batch.progress import Progress
from orchestrator.sdk import Tutti
from orchestrator.settings import read_settings

TASK_NAME = "task-0"


def measure(folder: Path, arguments: argparse.Namespace) -> bool:
    surroundings = Surroundings(arguments.threads)
    rates: Rates = {n: [] for n in WORKERS}
    outputs: set[bytes] = set()
    with tempfile.TemporaryDirectory() as name, RayMeter() as ray:
        home = Path(name)
        rows = _prepare(home, folder, arguments.rows)
        for repeat in range(arguments.repeats):
            for num_workers in WORKERS:
                output = home / f"answers-{repeat}-{num_workers}.jsonl"
                rate = _rate(home, rows, output, num_workers, arguments.shard_rows)
                rates[num_workers].append(rate)
                outputs.add(output.read_bytes())
                print(f"{num_workers} worker(s): {rate:.1f} rows/s", flush=True)
        load = surroundings.facts(ray.seconds())
    if len(outputs) != 1:
        print("the runs' answers differ", file=sys.stderr)
        return False
    facts = load | {
        "base": base_name(folder),
        "rows": arguments.rows,
        "shard_rows": arguments.shard_rows,
        "rates": rates,
    }
    write_results(arguments.output, "batch_scaling", facts, _markdown(facts))
    print(_markdown(facts))
    return True


def _tutti(home: Path, num_workers: int) -> Tutti:
    values = {
        "TUTTI_HOME": str(home / "home"),
        "TUTTI_NUM_WORKERS": str(num_workers),
        "TUTTI_MIN_WORKERS": str(num_workers),
        "TUTTI_WORKER_THREADS": "1",
    }
    return Tutti(read_settings(values, cwd=home))


def _prepare(home: Path, base: Path, num_rows: int) -> Path:
    """A version in production, and a file of so many rows for it, no two alike."""
    spec = make_spec(home, TASK_NAME, 1)
    with _tutti(home, 1) as tutti:
        tutti.add_base("smollm2-135m", base)
        (job,) = tutti.train([spec])
        if job.version is None:
            raise RuntimeError(f"nothing to answer with: {job.error}")
        tutti.promote(f"{TASK_NAME}@{job.version}", "production")
    text = (TASK.parent / "data" / "country-continent.train.jsonl").read_text(encoding="utf-8")
    countries = [json.loads(line)["country"] for line in text.splitlines()]
    rows = home / "rows.jsonl"
    with rows.open("w", encoding="utf-8") as file:
        for number in range(num_rows):
            country = countries[number % len(countries)]
            row = {"task": TASK_NAME, "country": f"{country} {number}"}
            file.write(json.dumps(row) + "\n")
    return rows


def _rate(home: Path, rows: Path, output: Path, num_workers: int, shard_rows: int) -> float:
    """Rows a second while all workers are at work."""
    seen: list[tuple[float, int]] = []

    def note(progress: Progress) -> None:
        seen.append((time.perf_counter(), progress.num_rows))

    with _tutti(home, num_workers) as tutti:
        tutti.batch(rows, output, on_progress=note, shard_rows=shard_rows)
    first = num_workers * shard_rows
    last = seen[-1][1] - first
    steady = [(at, count) for at, count in seen if first <= count <= last]
    (begun, before), (ended, after) = steady[0], steady[-1]
    return (after - before) / (ended - begun)


def _markdown(facts: dict[str, Any]) -> str:
    rates = facts["rates"]
    found = efficiency(rates)
    cells = [*(seconds(rates[n]) for n in WORKERS), f"{found:.2f}"]
    columns = ["rows/s, 1 worker", "2 workers", "efficiency"]
    verdict = [f"Two workers against one: {at_least(found, MIN_EFFICIENCY, '')}."]
    counted = (
        f"{facts['rows']} rows classified, {facts['shard_rows']} a shard, a thread a worker; "
        f"medians (least-most) of {len(rates[1])} runs each; all answers are the same, to the byte"
    )
    notes = [facts["base"], counted, *machine_notes(facts)]
    return document("One batch worker and two", table(columns, [cells], 0), verdict, notes=notes)


def main() -> int:
    parser = new_parser("batch_scaling", __doc__)
    parser.add_argument("--repeats", type=positive, default=3, help="runs of each kind")
    parser.add_argument("--rows", type=positive, default=3072)
    parser.add_argument("--shard-rows", type=positive, default=64)
    return run(parser.parse_args(), measure)


if __name__ == "__main__":
    sys.exit(main())
