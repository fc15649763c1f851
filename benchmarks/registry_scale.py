"""How fast is the registry with a million versions in it, beside MLflow's holding as many?

Run as `python -m benchmarks.registry_scale`. Both are filled by SQL (registry_rows.py), on SQLite
and on a real PostgreSQL with its defaults; then their own methods are timed, one call at a time, in
this process. Every write is a durable transaction. MLflow: its SQLAlchemy store, without a server
between.
"""

import argparse
import contextlib
import functools
import io
import os
import random
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, make_url, text

from benchmarks.machine import Surroundings, machine_notes
from benchmarks.registry_rows import Scale, fill_mlflow, fill_registry
from benchmarks.report import at_least, at_most, document, table, write_results
from orchestrator.domain.digest import digest_json
from orchestrator.domain.prompt_version import Artifact, Lineage, PromptRef, TrainedPrompt
from orchestrator.domain.version_filter import parse_filter
from orchestrator.registry import migrate
from orchestrator.registry.database import Database
from orchestrator.registry.prompt_registry import PromptRegistry
from tests.postgres_server import postgres_server

MAX_MS = 200.0
TARGETS = {"publish": 100.0, "resolve": 300.0}
FILTERS = {
    "filter: common values": "metrics.accuracy > 0.8 and base = base-3",
    "filter: one in a thousand": "metrics.accuracy > 0.9985",
    "filter: one in 20,000": "metrics.accuracy > 0.9985 and base = base-3",
    "filter: two metrics": "metrics.accuracy > 0.99 and metrics.loss < 0.04",
    "filter: either": "metrics.accuracy > 0.9985 or number = 3",
    "filter: nothing matches": "metrics.accuracy > 2",
    "filter: a base without versions": "base = nowhere and metrics.accuracy > 0.5",
    "filter: in production": "alias = production and metrics.accuracy > 0.99",
    "filter: by age": "age > 36500d",
    "filter: by number": "number = 3 and metrics.accuracy > 0.9",
}
COMMANDS = {
    "prompts list": ("prompts", "list"),
    "prompts show": ("prompts", "show", "task-7@production"),
    "prompts history": ("prompts", "history", "task-7"),
    "prompts lineage": ("prompts", "lineage", "task-7@production"),
    "prompts stale": ("prompts", "stale"),
    "prompts at": ("prompts", "at", "2026-01-01T00:00:00Z", "task-7"),
}

Call = Callable[[], object]
Figures = dict[str, float]


def timed(call: Call, times: int) -> Figures:
    """p50 and p99 of `times` calls, in milliseconds, after one that is not counted."""
    call()
    taken = []
    for _ in range(times):
        started = time.perf_counter()
        call()
        taken.append(1000 * (time.perf_counter() - started))
    ordered = sorted(taken)
    p99 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
    return {"p50_ms": statistics.median(ordered), "p99_ms": p99, "calls": times}


def tutti_calls(url: str, scale: Scale) -> dict[str, Call]:
    """What is timed of Tutti, by name."""
    database = Database.open(url)
    registry = PromptRegistry(database)
    draw = random.Random(0).randrange
    first = _trained("f" * 64)

    def any_task() -> str:
        return f"task-{draw(scale.tasks)}"

    def publish() -> None:
        digest = digest_json(uuid.uuid4().hex)
        artifacts = {**first.artifacts, "prompt_embeddings": Artifact(digest, 23_128)}
        registry.register(replace(first, task=any_task(), artifacts=artifacts))

    def unknown() -> None:
        with contextlib.suppress(Exception):
            registry.resolve(PromptRef("tusk-7", None))

    middle = PromptRef("task-7", max(1, scale.per_task // 2))
    targets = {"alias": "production", "number": 1, "newest": None}
    return {
        "publish": publish,
        **{
            f"resolve{'' if kind == 'alias' else f': by {kind}'}": functools.partial(
                lambda target: registry.resolve(PromptRef(any_task(), target)), target
            )
            for kind, target in targets.items()
        },
        "resolve: no such task": unknown,
        "promote": lambda: registry.promote(
            PromptRef(any_task(), 1 + draw(scale.per_task)), "staging", "ann"
        ),
        "list page": lambda: registry.list(limit=100),
        "list page: in the middle": lambda: registry.list(limit=100, before=middle),
        "list page: of one task": lambda: registry.list(any_task(), limit=100),
        "list page: in production": lambda: registry.list(alias="production", limit=100),
        **{
            name: functools.partial(registry.list, limit=100, where=parse_filter(where))
            for name, where in FILTERS.items()
        },
        "history": lambda: registry.history(any_task(), "production", 100),
        "stale": registry.list_superseded,
    }


def _trained(base: str) -> TrainedPrompt:
    names = ("encoder", "prompt_embeddings", "curve")
    artifacts = {name: Artifact(digest_json(name), 23_128) for name in names}
    metrics = {"accuracy": 0.5, "loss": 1.0, "held_out_rows": 123.0, "seconds": 31.5}
    lineage = Lineage("base-3", base, {"train": "d" * 64}, {"train": 124}, "e" * 64, 0, "0.1.0")
    return TrainedPrompt("task-0", {"metric": "accuracy"}, metrics, artifacts, lineage)


def command_calls(url: str, home: Path) -> dict[str, Call]:
    """Commands in this process: what they import is loaded by the call that is not counted."""
    from orchestrator.cli.app import tutti

    os.environ |= {"TUTTI_HOME": str(home), "TUTTI_DATABASE_URL": url}

    def run(arguments: tuple[str, ...]) -> None:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            tutti(arguments, standalone_mode=False)

    return {name: functools.partial(run, arguments) for name, arguments in COMMANDS.items()}


def mlflow_calls(url: str, scale: Scale) -> dict[str, Call]:
    """The same of MLflow. It cannot compare numbers and keeps no history of aliases: the nearest it
    can do are a tag's text, and the versions of a model."""
    from mlflow.entities.model_registry import ModelVersionTag
    from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore

    store = SqlAlchemyStore(url)
    draw = random.Random(0).randrange
    tags = [ModelVersionTag("base", "base-3"), ModelVersionTag("accuracy", "0.5")]

    def any_task() -> str:
        return f"task-{draw(scale.tasks)}"

    def search(filter_: str | None) -> object:
        return store.search_model_versions(filter_, max_results=100)

    return {
        "publish": lambda: store.create_model_version(any_task(), "mlflow-artifacts:/1", tags=tags),
        "resolve": lambda: store.get_model_version_by_alias(any_task(), "production"),
        "list page": lambda: search(None),
        "filter: common values": lambda: search("tags.base = 'base-3'"),
        "history": lambda: search(f"name = '{any_task()}'"),
    }


def measure(calls: Mapping[str, Call], times: int, budget_s: float) -> dict[str, Figures]:
    """Each call `times` times, or as often as `budget_s` seconds allow, twice at least."""
    found = {}
    for name, call in calls.items():
        started = time.perf_counter()
        call()
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


def run(arguments: argparse.Namespace, facts: dict[str, Any]) -> None:
    """Fill and measure each database in turn; what is known is written after each part."""
    scale = Scale(arguments.versions, arguments.tasks)
    peers = Scale(arguments.mlflow_versions or arguments.versions, arguments.tasks)
    with databases() as urls, tempfile.TemporaryDirectory() as home:
        for kind, (url, mlflow_url) in urls.items():
            found = facts["found"].setdefault(kind, {})
            started = time.perf_counter()
            migrate.upgrade(url)
            fill_registry(url, scale)
            found["filled_s"] = time.perf_counter() - started
            calls = {**tutti_calls(url, scale), **command_calls(url, Path(home))}
            found["tutti"] = measure(calls, arguments.times, arguments.budget)
            _write(arguments, facts)
            if peers.versions >= peers.tasks:
                mlflow = mlflow_calls(mlflow_url, peers)
                fill_mlflow(mlflow_url, peers)
                found["mlflow"] = measure(mlflow, arguments.times, arguments.budget)
                _write(arguments, facts)


def _write(arguments: argparse.Namespace, facts: dict[str, Any]) -> None:
    facts |= facts["surroundings"].facts()
    shown = {name: value for name, value in facts.items() if name != "surroundings"}
    write_results(arguments.output, "registry_scale", shown, markdown(facts))


def markdown(facts: Mapping[str, Any]) -> str:
    """The tables and verdicts of what has been measured."""
    asked = facts["asked"]
    blocks: list[list[str]] = []
    for kind, found in facts["found"].items():
        peer = found.get("mlflow", {})
        rows = [_row(name, figures, peer.get(name)) for name, figures in found["tutti"].items()]
        columns = ("", "p50 ms", "p99 ms", "MLflow p50 ms", "MLflow p99 ms", "times MLflow's rate")
        blocks += [[f"## {kind}"], table(columns, rows, 1), _verdicts(kind, found)]
    title = f"The registry with {asked['versions']:,} versions of {asked['tasks']:,} tasks"
    held = asked["mlflow_versions"] or asked["versions"]
    notes = [f"MLflow holds {held:,} versions of as many tasks.", *machine_notes(facts)]
    return document(title, *blocks, notes=notes)


def _row(name: str, ours: Figures, peer: Figures | None) -> list[str]:
    cells = [name, f"{ours['p50_ms']:.2f}", f"{ours['p99_ms']:.2f}"]
    if peer is None:
        return [*cells, "", "", ""]
    times = peer["p50_ms"] / ours["p50_ms"]
    return [*cells, f"{peer['p50_ms']:.1f}", f"{peer['p99_ms']:.1f}", f"{times:.0f}x"]


def _verdicts(kind: str, found: Mapping[str, Any]) -> list[str]:
    slowest = max(found["tutti"], key=lambda name: found["tutti"][name]["p50_ms"])
    lines = [
        (
            f"Slowest on {kind} ({slowest}): "
            f"{at_most(found['tutti'][slowest]['p50_ms'], MAX_MS, ' ms')}."
        )
    ]
    for name, target in TARGETS.items():
        if name in found.get("mlflow", {}):
            ratio = found["mlflow"][name]["p50_ms"] / found["tutti"][name]["p50_ms"]
            lines.append(f"{name} on {kind} beside MLflow: {at_least(ratio, target)}.")
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
