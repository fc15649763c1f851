"""Asks MLflow whether it still has what the registry says it has. Changes nothing there."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from orchestrator.tracking.mlflow_client import open_client

#: What MLflow says of an id that it does not have, or that is none of its own.
_GONE = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")


@dataclass(frozen=True)
class LostLink:
    """A version of which MLflow has lost something, and what."""

    task: str
    number: int
    what: str


def find_lost_links(
    tracking_uri: str, links: Iterable[tuple[str, int, str, str | None]]
) -> list[LostLink]:
    """Of (task, number, run id, model version), those whose run or model version is gone. Raises
    whatever MLflow raises when it does not answer."""
    client = open_client(tracking_uri)
    found = []
    for task, number, run_id, model_version in links:
        run = _get(client.get_run, run_id)
        if run is None or run.info.lifecycle_stage == "deleted":
            found.append(LostLink(task, number, f"its run {run_id} is gone"))
        elif model_version and _get(client.get_model_version, task, model_version) is None:
            what = f"version {model_version} of the model {task} is gone"
            found.append(LostLink(task, number, what))
    return found


def _get(ask: Any, *names: str) -> Any | None:
    from mlflow.exceptions import MlflowException

    try:
        return ask(*names)
    except MlflowException as error:
        if error.error_code in _GONE:
            return None
        raise
