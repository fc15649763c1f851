"""Where MLflow differs from the registry: a pure comparison of what both hold.

What is not of the registry (runs, versions, and aliases that point at such) is nobody's difference.
"""

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from orchestrator.domain.prompt_version import PromptVersion
from orchestrator.domain.task_spec import check_alias
from orchestrator.tracking.mlflow_contents import MlflowContents, key_of

Kind = Literal[
    "run", "model_version", "link", "doubled", "alias_moved", "alias_added", "alias_removed"
]
FOREIGN = "model version {}, which is not Tutti's"


@dataclass(frozen=True)
class Drift:
    """One difference. `subject` is `TASK@7` or, of an alias, `TASK@production`; `registry` and
    `mlflow` are what each has there (None: nothing)."""

    kind: Kind
    subject: str
    registry: str | None
    mlflow: str | None

    @property
    def is_of_alias(self) -> bool:
        return self.kind.startswith("alias")


def find_drift(
    versions: Sequence[PromptVersion], contents: MlflowContents, unheard: Collection[str]
) -> list[Drift]:
    """What differs of `versions` (a task's all), the versions' own first, each from old to new.

    Tasks of which MLflow has not been told everything yet, `unheard`, are left out. An alias that
    went away with its model version is no difference of its own.
    """
    tasks = defaultdict(list)
    for version in sorted(versions, key=lambda each: (each.task, each.number)):
        if version.task not in unheard:
            tasks[version.task].append(version)
    known = [version for task in tasks.values() for version in task]
    of_versions = [drift for version in known for drift in _of_version(version, contents)]
    broken = {drift.subject for drift in of_versions}
    of_aliases = [drift for task in tasks.values() for drift in _of_aliases(task, contents)]
    return of_versions + [
        drift
        for drift in of_aliases
        if not (drift.kind == "alias_removed" and drift.registry in broken)
    ]


def aliases_in_mlflow(
    versions: Sequence[PromptVersion], contents: MlflowContents
) -> dict[str, str]:
    """What MLflow's aliases of one task point at, as `TASK@7` where that is one of `versions`."""
    task, keys = versions[0].task, {key_of(version) for version in versions}
    found = {}
    for alias, number in contents.aliases.get(task, {}).items():
        key = contents.keys.get((task, number))
        found[alias] = key[0] if key in keys and key else FOREIGN.format(number)
    for alias, ref in contents.tagged.get(task, {}).items():
        found[alias] = ref
    return {alias: ref for alias, ref in found.items() if _is_alias(alias)}


def _of_version(version: PromptVersion, contents: MlflowContents) -> Iterator[Drift]:
    runs = contents.runs.get(key_of(version), {})
    models = contents.model_versions.get(key_of(version), {})
    linked = _named([version.run_id or ""], [version.model_version or ""])
    found = _named(runs, models)
    kind: Kind
    if "FINISHED" not in runs.values():
        kind = "run"
    elif not any(runs.get(run) == "FINISHED" for run in models.values()):
        kind = "model_version"
    elif len(runs) > 1 or len(models) > 1:
        kind = "doubled"
    elif found != linked:
        kind = "link"
    else:
        return
    yield Drift(kind, version.ref, linked, found)


def _of_aliases(versions: Sequence[PromptVersion], contents: MlflowContents) -> Iterator[Drift]:
    refs = {version.ref for version in versions}
    here = {alias: version.ref for version in versions for alias in version.aliases}
    there = aliases_in_mlflow(versions, contents)
    for alias in sorted(here.keys() | there.keys()):
        subject, ours, theirs = f"{versions[0].task}@{alias}", here.get(alias), there.get(alias)
        if ours and theirs is None:
            yield Drift("alias_removed", subject, ours, None)
        elif ours and ours != theirs:
            yield Drift("alias_moved", subject, ours, theirs)
        elif not ours and theirs in refs:
            yield Drift("alias_added", subject, None, theirs)


def _is_alias(name: str) -> bool:
    """Whether the registry could have it: others' names are others' business."""
    try:
        check_alias(name)
    except ValueError:
        return False
    return True


def _named(runs: Collection[str], model_versions: Collection[str]) -> str | None:
    parts = {"run": sorted(runs), "model version": sorted(model_versions)}
    named = [f"{what} {' and '.join(ids)}" for what, ids in parts.items() if any(ids)]
    return ", ".join(named) or None
