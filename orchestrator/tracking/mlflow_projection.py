"""Writes versions and aliases to MLflow, each once: what is there is found by its tags first.

All runs are in one experiment, `tutti`: MLflow compares and searches within an experiment, and a
team compares its tasks and bases; the base is a tag and a param to filter by.
"""

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orchestrator.artifacts.artifact_store import ArtifactStore
from orchestrator.domain.prompt_version import PromptVersion
from orchestrator.tracking.curve import read_curve
from orchestrator.tracking.learning_curve import draw_learning_curve
from orchestrator.tracking.mlflow_client import without_password
from orchestrator.tracking.trial_runs import read_sweep, write_trial_runs
from orchestrator.tracking.version_run import (
    DIGEST_TAG,
    REF_TAG,
    describe,
    model_version_tags,
    run_params,
    run_points,
    run_tags,
    time_span_ms,
    version_json,
)

EXPERIMENT = "tutti"
PICTURE = "learning-curve.png"
WEIGHTS = ("encoder", "prompt_embeddings")
_MAX_PARAMS, _MAX_METRICS = 100, 1000


class MlflowProjection:
    """An open MLflow. Its methods may raise whatever MLflow raises; all can be repeated."""

    def __init__(self, client: Any, artifacts: ArtifactStore, artifact_root: Path | None) -> None:
        self._client = client
        self._artifacts = artifacts
        self._experiment_id = self._open_experiment(artifact_root)
        self._known_models: set[str] = set()

    def project(self, version: PromptVersion) -> tuple[str, str]:
        """Make the version's run and model version, if they are not there; return their ids."""
        run = self._find_run(version) or self._create_run(version)
        if run.info.status != "FINISHED":
            self._fill_run(run.info.run_id, version)
        found = self._find_model_version(version) or self._create_model_version(version, run)
        return run.info.run_id, str(found.version)

    def move_alias(self, task: str, alias: str, model_version: str, number: int) -> None:
        """Point the model's alias at a version; an alias MLflow cannot have becomes a tag."""
        if _is_mlflow_alias(alias):
            self._client.set_registered_model_alias(task, alias, model_version)
        else:
            self._client.set_registered_model_tag(task, f"tutti.alias.{alias}", f"{task}@{number}")

    def picture_url(self, run_id: str, tracking_uri: str) -> str:
        """Where a person finds the run's learning curve: a file, or a page of the server."""
        info = self._client.get_run(run_id).info
        if tracking_uri.startswith("http"):
            run = f"#/experiments/{info.experiment_id}/runs/{run_id}"
            return f"{without_password(tracking_uri).rstrip('/')}/{run}/artifacts/{PICTURE}"
        return f"{info.artifact_uri.removeprefix('file://')}/{PICTURE}"

    def _open_experiment(self, artifact_root: Path | None) -> str:
        experiment = self._client.get_experiment_by_name(EXPERIMENT)
        if experiment is None:
            location = str(artifact_root) if artifact_root else None
            return str(self._client.create_experiment(EXPERIMENT, artifact_location=location))
        if experiment.lifecycle_stage == "deleted":
            self._client.restore_experiment(experiment.experiment_id)
        return str(experiment.experiment_id)

    def _find_run(self, version: PromptVersion) -> Any | None:
        runs = self._client.search_runs([self._experiment_id], _tagged(version), max_results=1)
        return runs[0] if runs else None

    def _create_run(self, version: PromptVersion) -> Any:
        return self._client.create_run(
            self._experiment_id,
            start_time=time_span_ms(version)[0],
            tags=run_tags(version),
            run_name=version.ref,
        )

    def _fill_run(self, run_id: str, version: PromptVersion) -> None:
        """Log everything of a version, and end its run. A part that is there is not doubled."""
        from mlflow.entities import Metric, Param

        curve = read_curve(version, self._artifacts)
        params = [Param(name, value) for name, value in run_params(version).items()]
        metrics = [
            Metric(point.name, point.value, point.timestamp_ms, point.step)
            for point in run_points(version, curve)
        ]
        for some in _batches(params, _MAX_PARAMS):
            self._client.log_batch(run_id, params=some)
        for some in _batches(metrics, _MAX_METRICS):
            self._client.log_batch(run_id, metrics=some)
        with tempfile.TemporaryDirectory(prefix="tutti-mlflow-") as folder:
            self._write_artifacts(Path(folder), version, draw_learning_curve(version, curve))
            self._client.log_artifacts(run_id, folder)
        if (sweep := read_sweep(version, self._artifacts)) is not None:
            write_trial_runs(self._client, self._experiment_id, run_id, version, sweep)
        self._client.set_terminated(run_id, "FINISHED", end_time=time_span_ms(version)[1])

    def _write_artifacts(self, folder: Path, version: PromptVersion, picture: bytes) -> None:
        for name in WEIGHTS:
            digest = version.artifacts[name].digest
            self._artifacts.fetch(digest, folder / f"{name}.safetensors")
        (folder / "version.json").write_text(version_json(version), encoding="utf-8")
        (folder / PICTURE).write_bytes(picture)
        if "sweep" in version.artifacts:
            self._artifacts.fetch(version.artifacts["sweep"].digest, folder / "sweep.json")

    def _find_model_version(self, version: PromptVersion) -> Any | None:
        query = f"name = '{version.task}' and {_tagged(version)}"
        found = self._client.search_model_versions(query, max_results=1)
        return found[0] if found else None

    def _create_model_version(self, version: PromptVersion, run: Any) -> Any:
        self._ensure_model(version.task)
        return self._client.create_model_version(
            version.task,
            source=run.info.artifact_uri,
            run_id=run.info.run_id,
            tags=model_version_tags(version),
            description=describe(version),
            await_creation_for=0,
        )

    def _ensure_model(self, task: str) -> None:
        from mlflow.exceptions import MlflowException

        if task in self._known_models:
            return
        try:
            self._client.create_registered_model(task, description=f"Tutti's prompts for {task}")
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        self._known_models.add(task)


def _tagged(version: PromptVersion) -> str:
    """MLflow's filter for what this version made: names and digests hold no quotes."""
    return f"tags.`{REF_TAG}` = '{version.ref}' and tags.`{DIGEST_TAG}` = '{version.digest}'"


def _is_mlflow_alias(alias: str) -> bool:
    """MLflow has no '.' in aliases, and keeps 'latest' and 'v7' for itself."""
    return bool(re.fullmatch(r"[\w-]+", alias)) and not re.fullmatch(r"latest|v\d+", alias)


def _batches(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
