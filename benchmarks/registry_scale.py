"""How fast is the registry with a million versions in it, beside MLflow's holding as many?

Run as `python -m benchmarks.registry_scale`. Both are filled by SQL (registry_rows.py), on SQLite
and on a real PostgreSQL with its defaults; then their own methods are timed, one call at a time.
Every write is a durable transaction. MLflow twice: its SQLAlchemy store in this process, and its
server on this machine through REST, as teams use it.
"""

import argparse
import contextlib
import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, make_url, text

from benchmarks.machine import Surroundings, machine_notes
from benchmarks.registry_calls import (
    PUBLISH,
    PUBLISH_ALONE,
    PUBLISH_MANY,
    PUBLISH_MANY_ALONE,
    SERVE,
    Call,
    command_calls,
    mlflow_calls,
    mlflow_server_calls,
    service_calls,
    tutti_calls,
)
from benchmarks.registry_rows import Scale, fill_mlflow, fill_registry
from benchmarks.report import at_least, at_most, document, table, write_results
from deploy.local import mlflow_server, processes
from orchestrator.registry import migrate
from tests.postgres_server import postgres_server

MAX_MS = 200.0
TARGETS = {
    **dict.fromkeys((PUBLISH, PUBLISH_ALONE, PUBLISH_MANY, PUBLISH_MANY_ALONE), 100.0),
    **dict.fromkeys(("resolve", SERVE), 300.0),
}
PEERS = {"store": "MLflow's store", "server": "MLflow's server"}
Figures = dict[str, float]


def timed(call: Call, times: int) -> Figures:
    """p50 and p99 of `times` calls, in milliseconds each thing, after one that is not counted."""
    call.run()
    taken = []
    for _ in range(times):
        started = time.perf_counter()
        call.run()
        taken.append(1000 * (time.perf_counter() - started) / call.count)
    ordered = sorted(taken)
    p99 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
    return {"p50_ms": statistics.median(ordered), "p99_ms": p99, "calls": times}


def measure(calls: Mapping[str, Call], times: int, budget_s: float) -> dict[str, Figures]:
    """Each call `times` times, or as often as `budget_s` seconds allow, twice at least."""
    found = {}
    for name, call in calls.items():
        started = time.perf_counter()
        call.run()
        once_s = max(time.perf_counter() - started, 1e-6)
        found[name] = timed(call, max(2, min(times, int(budget_s / once_s))))
        print(f"{name}: {found[name]['p50_ms']:.2f} ms", file=sys.stderr)
    return found


@contextlib.contextmanager
def databases() -> Iterator[dict[str, tuple[str, str]]]:
    """URLs for each kind of database, empty: the registry's and MLflow's."""
    with tempfile.TemporaryDirectory(prefix="tutti-scale-") as folder, postgres_server() as uri:
        server = make_url(uri).set(drivername="postgresql+psycopg")
        with create_engine(server, isolation_level="AUTOCOMMIT").connect() as admin:
            for name in ("tutti", "mlflow"):
                admin.execute(text(f"CREATE DATABASE {name}"))
        urls = (
            server.set(database=name).render_as_string(hide_password=False)
            for name in ("tutti", "mlflow")
        )
        lite = (f"sqlite:///{folder}/{name}.db" for name in ("tutti", "mlflow"))
        yield {"SQLite": (next(lite), next(lite)), "PostgreSQL": (next(urls), next(urls))}


@contextlib.contextmanager
def serving(backend: str) -> Iterator[str]:
    """An MLflow server of a database, while the context lasts."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    with tempfile.TemporaryDirectory(prefix="tutti-mlflow-") as name:
        folder = Path(name)
        service = mlflow_server.service(folder / "data", port, os.environ, backend)
        part = processes.spawn(service, folder / "log", folder, folder)
        try:
            processes.wait_ready(service, part, folder / "log", 0, timeout_s=120)
            yield mlflow_server.url(port)
        finally:
            processes.stop(part, grace_s=10)


def run(arguments: argparse.Namespace, facts: dict[str, Any]) -> None:
    """Fill and measure each database in turn; what is known is written after each part."""
    scale = Scale(arguments.versions, arguments.tasks)
    with databases() as urls, tempfile.TemporaryDirectory() as home:
        for kind, (url, mlflow_url) in urls.items():
            found = facts["found"].setdefault(kind, {})
            started = time.perf_counter()
            migrate.upgrade(url)
            fill_registry(url, scale)
            found["filled_s"] = time.perf_counter() - started
            place = Path(home, kind)
            service, commands = service_calls(url, place), command_calls(url, place)
            calls = {**tutti_calls(url, scale), **service, **commands}
            found["tutti"] = measure(calls, arguments.times, arguments.budget)
            _write(arguments, facts)
            if arguments.mlflow_versions != 0:
                _run_mlflow(arguments, mlflow_url, found)
                _write(arguments, facts)


def _run_mlflow(arguments: argparse.Namespace, url: str, found: dict[str, Any]) -> None:
    peers = Scale(arguments.mlflow_versions or arguments.versions, arguments.tasks)
    calls = mlflow_calls(url, peers)  # makes the schema
    fill_mlflow(url, peers)
    found["store"] = measure(calls, arguments.times, arguments.budget)
    with serving(url) as uri:
        server = mlflow_server_calls(uri, peers)
        found["server"] = measure(server, arguments.times, arguments.budget)


def _write(arguments: argparse.Namespace, facts: dict[str, Any]) -> None:
    facts |= facts["surroundings"].facts()
    shown = {name: value for name, value in facts.items() if name != "surroundings"}
    write_results(arguments.output, "registry_scale", shown, markdown(facts))


def markdown(facts: Mapping[str, Any]) -> str:
    """The tables and verdicts of what has been measured."""
    asked = facts["asked"]
    blocks: list[list[str]] = []
    for kind, found in facts["found"].items():
        rows = [_row(name, found) for name in found["tutti"]]
        columns = ["", "p50 ms", "p99 ms"]
        for peer in PEERS.values():
            columns += [f"{peer} p50 ms", "p99 ms", "its p50 / ours"]
        blocks += [[f"## {kind}"], table(columns, rows, 1), _verdicts(kind, found)]
    title = f"The registry with {asked['versions']:,} versions of {asked['tasks']:,} tasks"
    held = asked["mlflow_versions"] or asked["versions"]
    notes = [f"MLflow holds {held:,} versions of as many tasks.", *machine_notes(facts)]
    return document(title, *blocks, notes=notes)


def _row(name: str, found: Mapping[str, Any]) -> list[str]:
    ours = found["tutti"][name]
    cells = [name, f"{ours['p50_ms']:.2f}", f"{ours['p99_ms']:.2f}"]
    for peer in PEERS:
        figures = found.get(peer, {}).get(name)
        if figures is None:
            cells += [""] * 3
        else:
            times = figures["p50_ms"] / ours["p50_ms"]
            cells += [f"{figures['p50_ms']:.1f}", f"{figures['p99_ms']:.1f}", f"{times:.0f}x"]
    return cells


def _verdicts(kind: str, found: Mapping[str, Any]) -> list[str]:
    slowest = max(found["tutti"], key=lambda name: found["tutti"][name]["p50_ms"])
    lines = [
        (
            f"Slowest on {kind} ({slowest}): "
            f"{at_most(found['tutti'][slowest]['p50_ms'], MAX_MS, ' ms')}."
        )
    ]
    for name, target in TARGETS.items():
        for peer, title in PEERS.items():
            if name in found.get(peer, {}):
                ratio = found[peer][name]["p50_ms"] / found["tutti"][name]["p50_ms"]
                lines.append(f"{name} on {kind} beside {title}: {at_least(ratio, target)}.")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.registry_scale", description=__doc__
    )
    add = parser.add_argument
    add("--versions", type=int, default=1_000_000)
    add("--tasks", type=int, default=10_000)
    add("--mlflow-versions", type=int, help="how many MLflow holds (default: as many); 0: none")
    add("--times", type=int, default=300, help="calls of each kind")
    add("--budget", type=float, default=10.0, help="seconds for the calls of one kind")
    add("--output", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    asked = {name: value for name, value in vars(arguments).items() if name != "output"}
    facts: dict[str, Any] = {"asked": asked, "found": {}, "surroundings": Surroundings(1)}
    try:
        run(arguments, facts)
    except KeyboardInterrupt:
        print("interrupted; what was measured is written", file=sys.stderr)
        return 130
    print(markdown(facts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
