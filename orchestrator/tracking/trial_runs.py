"""A sweep's trials as MLflow runs below the run of the version that won, each made once."""

import json
from typing import Any

from orchestrator.artifacts.artifact_store import ArtifactStore
from orchestrator.domain.errors import IntegrityError
from orchestrator.domain.prompt_version import PromptVersion
from orchestrator.tracking.version_run import MAX_PARAM_CHARS, time_span_ms

MAX_BYTES = 1 << 24
PARENT_TAG, TRIAL_TAG, STATE_TAG = "mlflow.parentRunId", "tutti.trial", "tutti.trial_state"


def read_sweep(version: PromptVersion, artifacts: ArtifactStore) -> dict[str, Any] | None:
    """The metric and the trials of the sweep that the version won, if it won one. Raises
    IntegrityError for an artifact that is away, or holds no sweep."""
    artifact = version.artifacts.get("sweep")
    if artifact is None:
        return None
    data = artifacts.get_bytes(artifact.digest, MAX_BYTES)
    try:
        sweep: dict[str, Any] = json.loads(data)
        _check(sweep)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise IntegrityError(
            f"the artifact `sweep` of {version.ref} holds no sweep: {error!r}"
        ) from error
    return sweep


def _check(sweep: dict[str, Any]) -> None:
    """Raise TypeError or KeyError unless a sweep has what is told of it."""
    kinds = {"trial": (int,), "state": (str,), "values": (dict,)}
    numbers = dict.fromkeys(("best_loss", "best", "steps", "best_step"), (int, float, type(None)))
    if not isinstance(sweep["metric"], str) or not isinstance(sweep["trials"], list):
        raise TypeError("metric or trials")
    for trial in sweep["trials"]:
        for name, allowed in {**kinds, **numbers}.items():
            if not isinstance(trial[name], allowed):
                raise TypeError(f"{name} of a trial")


def write_trial_runs(
    client: Any, experiment_id: str, run_id: str, version: PromptVersion, sweep: dict[str, Any]
) -> None:
    """Make the runs that are not there yet, below the version's own run."""
    below = f"tags.`{PARENT_TAG}` = '{run_id}'"
    known = {
        run.data.tags.get(TRIAL_TAG): run
        for run in client.search_runs([experiment_id], below, max_results=1000)
    }
    for trial in sweep["trials"]:
        run = known.get(str(trial["trial"]))
        if run is None:
            tags = {
                PARENT_TAG: run_id,
                TRIAL_TAG: str(trial["trial"]),
                STATE_TAG: trial["state"][:MAX_PARAM_CHARS],
            }
            name = f"{version.ref} trial {trial['trial']}"
            start_ms = time_span_ms(version)[0]
            run = client.create_run(experiment_id, start_ms, tags, run_name=name)
        if run.info.status == "RUNNING":
            _fill(client, run.info.run_id, version, trial, sweep["metric"])


def _fill(
    client: Any, run_id: str, version: PromptVersion, trial: dict[str, Any], metric: str
) -> None:
    from mlflow.entities import Metric, Param

    end_ms = time_span_ms(version)[1]
    scores = {"loss": trial["best_loss"], metric: trial["best"], "steps": trial["steps"]}
    metrics = [
        Metric(name, value, end_ms, trial["best_step"])
        for name, value in scores.items()
        if value is not None
    ]
    params = [
        Param(path, _text(value)[:MAX_PARAM_CHARS]) for path, value in trial["values"].items()
    ]
    client.log_batch(run_id, metrics=metrics, params=params)
    is_failed = trial["state"].startswith("failed")
    client.set_terminated(run_id, "FAILED" if is_failed else "FINISHED", end_time=end_ms)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
