"""Writes versions and aliases to MLflow, each once: what is there is found by its tags first.

All runs are in one experiment, `tutti`: MLflow compares and searches within an experiment, and a
team compares its tasks and bases; the base is a tag and a param to filter by.
"""

import re
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from orchestrator.artifacts.artifact_store import ArtifactStore
from orchestrator.domain.prompt_version import PromptVersion
from orchestrator.tracking.curve import read_curve
from orchestrator.tracking.learning_curve import draw_learning_curve
from orchestrator.tracking.mlflow_client import without_password
from orchestrator.tracking.mlflow_contents import MlflowContents
from orchestrator.tracking.trial_runs import read_sweep, write_trial_runs
from orchestrator.tracking.version_run import (
    ALIAS_TAG,
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

    def project(self, version: PromptVersion) -> tuple[str, str]:
        """Make the version's run and model version, if they are not there; return their ids.

        A run that was deleted by hand is restored. Of what is there twice, the linked one is used.
        """
        run = self._find_run(version) or self._create_run(version)
        if run.info.status != "FINISHED":
            self._fill_run(run.info.run_id, version)
        found = self._find_model_version(version, run.info.run_id)
        return run.info.run_id, str((found or self._create_model_version(version, run)).version)

    def drop_doubles(self, version: PromptVersion, run_id: str, model_version: str) -> None:
        """Delete every other run and model version of `version`; aliases on them move over."""
        for model in self._model_versions(version):
            if str(model.version) != model_version:
                self._move_aliases(model, model_version)
                self._client.delete_model_version(version.task, model.version)
        for run in self._runs(version):
            if run.info.run_id != run_id:
                self._client.delete_run(run.info.run_id)

    def move_alias(self, task: str, alias: str, model_version: str, number: int) -> None:
        """Point the model's alias at a version; an alias MLflow cannot have becomes a tag."""
        if is_mlflow_alias(alias):
            self._client.set_registered_model_alias(task, alias, model_version)
        else:
            self._client.set_registered_model_tag(task, f"{ALIAS_TAG}{alias}", f"{task}@{number}")

    def remove_alias(self, task: str, alias: str) -> None:
        """Take away an alias that the registry does not have."""
        if is_mlflow_alias(alias):
            self._client.delete_registered_model_alias(task, alias)
        else:
            self._client.delete_registered_model_tag(task, f"{ALIAS_TAG}{alias}")

    def contents(self, task: str | None = None) -> MlflowContents:
        """What MLflow holds of ours now: all, or what is of one task."""
        return MlflowContents.read(self._client, self._experiment_id, task)

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
        runs = self._runs(version)
        if runs:
            return next((run for run in runs if run.info.run_id == version.run_id), runs[0])
        from mlflow.entities import ViewType

        for run in self._runs(version, ViewType.DELETED_ONLY):
            if run.info.run_id == version.run_id:
                self._client.restore_run(run.info.run_id)
                return run
        return None

    def _runs(self, version: PromptVersion, view: int = 1) -> list[Any]:
        """The version's runs, in a fixed order; by default those that are not deleted."""
        query = ([self._experiment_id], _tagged(version), view)
        order = ["attributes.run_id ASC"]
        return list(self._client.search_runs(*query, max_results=100, order_by=order))

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

        curve, sweep = read_curve(version, self._artifacts), read_sweep(version, self._artifacts)
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
        if sweep is not None:
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

    def _find_model_version(self, version: PromptVersion, run_id: str) -> Any | None:
        """The model version of this run: one of a run that is gone has lost its files."""
        found = [each for each in self._model_versions(version) if each.run_id == run_id]
        linked = (each for each in found if str(each.version) == version.model_version)
        return next(linked, found[0] if found else None)

    def _model_versions(self, version: PromptVersion) -> list[Any]:
        query = f"name = '{version.task}' and {_tagged(version)}"
        found = self._client.search_model_versions(query, max_results=100)
        return sorted(found, key=lambda each: int(each.version))

    def _move_aliases(self, model: Any, model_version: str) -> None:
        aliases = self._client.get_registered_model(model.name).aliases
        for alias in [
            name for name, number in aliases.items() if str(number) == str(model.version)
        ]:
            self._client.set_registered_model_alias(model.name, alias, model_version)

    def _create_model_version(self, version: PromptVersion, run: Any) -> Any:
        """Under the task's registered model, which is made with its first version."""
        from mlflow.exceptions import MlflowException

        create = partial(
            self._client.create_model_version,
            version.task,
            source=run.info.artifact_uri,
            run_id=run.info.run_id,
            tags=model_version_tags(version),
            description=describe(version),
            await_creation_for=0,
        )
        try:
            return create()
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
        description = f"Tutti's prompts for {version.task}"
        self._client.create_registered_model(version.task, description=description)
        return create()


def _tagged(version: PromptVersion) -> str:
    """MLflow's filter for what this version made: names and digests hold no quotes."""
    return f"tags.`{REF_TAG}` = '{version.ref}' and tags.`{DIGEST_TAG}` = '{version.digest}'"


def is_mlflow_alias(alias: str) -> bool:
    """MLflow has no '.' in aliases, and keeps 'latest' and 'v7' for itself."""
    return bool(re.fullmatch(r"[\w-]+", alias)) and not re.fullmatch(r"latest|v\d+", alias)


def _batches(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
