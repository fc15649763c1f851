"""What registry_scale.py times: the registry's methods, commands, and MLflow's nearest to them."""

import contextlib
import functools
import io
import os
import random
import uuid
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.registry_rows import CONFIG, Scale
from encoders.files.weights_file import dump_tensors
from orchestrator.domain.digest import digest_json
from orchestrator.domain.prompt_version import Artifact, Lineage, PromptRef, TrainedPrompt
from orchestrator.domain.version_filter import parse_filter
from orchestrator.registry.database import Database
from orchestrator.registry.prompt_registry import PromptRegistry
from orchestrator.sdk import Tutti
from orchestrator.settings import read_settings

AT_ONCE = 1000  # versions of one transaction
PUBLISH = "publish"
PUBLISH_ALONE = "publish; MLflow: without a run"
PUBLISH_MANY = f"publish: {AT_ONCE} at once, each"
PUBLISH_MANY_ALONE = f"publish: {AT_ONCE} at once, each; MLflow: without a run"
SERVE = "resolve: by a service, `Tutti().load`"
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


class Call(NamedTuple):
    """A call, and how many of the thing that is timed it does."""

    run: Callable[[], object]
    count: int = 1


Calls = dict[str, Call]


def tutti_calls(url: str, scale: Scale) -> Calls:
    """What is timed of Tutti, by name."""
    database = Database.open(url)
    registry = PromptRegistry(database)
    draw = random.Random(0).randrange
    first = _trained("f" * 64)

    def any_task() -> str:
        return f"task-{draw(scale.tasks)}"

    def a_version() -> TrainedPrompt:
        digest = digest_json(uuid.uuid4().hex)
        artifacts = {**first.artifacts, "prompt_embeddings": Artifact(digest, 23_128)}
        return replace(first, task=any_task(), artifacts=artifacts)

    def unknown() -> None:
        with contextlib.suppress(Exception):
            registry.resolve(PromptRef("tusk-7", None))

    targets = {"alias": "production", "number": 1, "newest": None}
    calls: dict[str, Callable[[], object]] = {
        **dict.fromkeys((PUBLISH, PUBLISH_ALONE), lambda: registry.register(a_version())),
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
        **_pages(registry, scale, any_task),
        "history": lambda: registry.history(any_task(), "production", 100),
        "stale": registry.list_superseded,
    }
    together = Call(lambda: registry.register_all([a_version() for _ in range(AT_ONCE)]), AT_ONCE)
    return {**dict.fromkeys((PUBLISH_MANY, PUBLISH_MANY_ALONE), together), **_singly(calls)}


def _pages(
    registry: PromptRegistry, scale: Scale, any_task: Callable[[], str]
) -> dict[str, Callable[[], object]]:
    """Pages of versions: all, some, and filtered."""
    middle = PromptRef("task-7", max(1, scale.per_task // 2))
    return {
        "list page": lambda: registry.list(limit=100),
        "list page: in the middle": lambda: registry.list(limit=100, before=middle),
        "list page: of one task": lambda: registry.list(any_task(), limit=100),
        "list page: in production": lambda: registry.list(alias="production", limit=100),
        **{
            name: functools.partial(registry.list, limit=100, where=parse_filter(where))
            for name, where in FILTERS.items()
        },
    }


def _singly(calls: Mapping[str, Callable[[], object]]) -> Calls:
    return {name: Call(run) for name, run in calls.items()}


def _trained(base: str) -> TrainedPrompt:
    """A version with as much in it as those that the registry is filled with."""
    names = ("encoder", "prompt_embeddings", "curve")
    artifacts = {name: Artifact(digest_json(name), 23_128) for name in names}
    metrics = {"accuracy": 0.5, "loss": 1.0, "held_out_rows": 123.0, "seconds": 31.5}
    lineage = Lineage("base-3", base, {"train": "d" * 64}, {"train": 124}, "e" * 64, 0, "0.1.0")
    return TrainedPrompt("task-0", CONFIG, metrics, artifacts, lineage)


def service_calls(url: str, home: Path) -> Calls:
    """A service that loads its prompt for each request, with the product's settings: the registry
    is asked once in a time to live."""
    settings = read_settings({"TUTTI_HOME": str(home), "TUTTI_DATABASE_URL": url}, home)
    tutti = Tutti(settings)
    weights = dump_tensors({"prompt_embeddings": torch.ones(10, 576)})
    stored = tutti.parts.artifacts.put_bytes(weights)
    trained = _trained("f" * 64)
    artifacts = {**trained.artifacts, "prompt_embeddings": stored}
    version, _ = tutti.parts.prompts.register(replace(trained, artifacts=artifacts))
    tutti.parts.prompts.promote(PromptRef(version.task, version.number), "served", "ann")
    return {SERVE: Call(lambda: tutti.load(f"{version.task}@served"))}


def command_calls(url: str, home: Path) -> Calls:
    """Commands in this process: what they import is loaded by the call that is not counted."""
    from orchestrator.cli.app import tutti

    os.environ |= {"TUTTI_HOME": str(home), "TUTTI_DATABASE_URL": url}

    def run(arguments: tuple[str, ...]) -> None:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            tutti(arguments, standalone_mode=False)

    return {name: Call(functools.partial(run, given)) for name, given in COMMANDS.items()}


def mlflow_calls(url: str, scale: Scale) -> Calls:
    """The same of MLflow's store, in this process. It cannot compare numbers, has no history of
    aliases and publishes one version at a time: the nearest it can do are a tag's text, the
    versions of a model, and as many calls. Its versions hold no metrics and no parameters: these
    are a run's, so to publish all that a version of Tutti's holds is to write a run as well."""
    from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore

    return _mlflow_calls(SqlAlchemyStore(url), url, scale)


def mlflow_server_calls(uri: str, scale: Scale) -> Calls:
    """The same through its server's REST interface, as teams use it."""
    from mlflow.store.model_registry.rest_store import RestStore
    from mlflow.utils.credentials import get_default_host_creds

    return _mlflow_calls(RestStore(lambda: get_default_host_creds(uri)), uri, scale)


def _mlflow_calls(store: Any, uri: str, scale: Scale) -> Calls:
    from mlflow.entities.model_registry import ModelVersionTag

    draw = random.Random(0).randrange
    tags = [ModelVersionTag("base", "base-3"), ModelVersionTag("accuracy", "0.5")]
    publish_whole = _mlflow_publisher(uri)

    def any_task() -> str:
        return f"task-{draw(scale.tasks)}"

    def publish_alone() -> object:
        return store.create_model_version(any_task(), "s3://models/1", tags=tags)

    def publish() -> None:
        publish_whole(any_task())

    def search(filter_: str | None) -> object:
        return store.search_model_versions(filter_, max_results=100)

    calls: dict[str, Callable[[], object]] = {
        PUBLISH: publish,
        PUBLISH_ALONE: publish_alone,
        PUBLISH_MANY: publish,
        PUBLISH_MANY_ALONE: publish_alone,
        SERVE: lambda: store.get_model_version_by_alias(any_task(), "production"),
        "resolve": lambda: store.get_model_version_by_alias(any_task(), "production"),
        "list page": lambda: search(None),
        "filter: common values": lambda: search("tags.base = 'base-3'"),
        "history": lambda: search(f"name = '{any_task()}'"),
    }
    return _singly(calls)


def _mlflow_publisher(uri: str) -> Callable[[str], None]:
    """Publishes to MLflow what a version of Tutti's holds: a run, and a version of a model."""
    from mlflow.entities import Metric, Param
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri, uri)
    experiment = client.create_experiment(uuid.uuid4().hex)
    trained = _trained("f" * 64)
    params = [Param(name, str(value)) for name, value in trained.config.items()]
    metrics = [Metric(name, value, 0, 0) for name, value in trained.metrics.items()]
    lineage = {name: str(value) for name, value in vars(trained.lineage).items()}

    def publish(model: str) -> None:
        run = client.create_run(experiment).info
        client.log_batch(run.run_id, metrics, params)
        source = f"{run.artifact_uri}/prompt"
        client.create_model_version(model, source, run.run_id, tags=lineage, await_creation_for=0)
        client.set_terminated(run.run_id)

    return publish
