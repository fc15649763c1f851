"""The trials of a sweep in a real MLflow, below the run of the version that won."""

from collections.abc import Callable
from typing import Any

import pytest

from orchestrator.domain.prompt_version import PromptVersion
from orchestrator.tracking.mlflow_client import open_client
from orchestrator.tracking.mlflow_mirror import Delivery, MlflowMirror

Make = Callable[..., PromptVersion]
WON = {"best": 0.81, "best_loss": 0.4, "best_step": 60, "steps": 80}
LOST = {"best": None, "best_loss": None, "best_step": 0, "steps": 3}
SWEEP = {
    "metric": "accuracy",
    "trials": [
        {"trial": 0, "values": {"training.learning_rate": 0.01}, **WON, "state": "won"},
        {"trial": 1, "values": {"training.learning_rate": 1e30}, **LOST, "state": "failed: NaN"},
    ],
}


def runs(client: Any) -> dict[str, Any]:
    experiment = client.get_experiment_by_name("tutti")
    return {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}


@pytest.fixture
def client(tracking_uri: str) -> Any:
    return open_client(tracking_uri)


def test_trials_are_runs_below_the_versions(
    mirror: MlflowMirror, make_version: Make, client: Any
) -> None:
    version = make_version(sweep=SWEEP)
    assert mirror.deliver() == Delivery(1, 0)
    found = runs(client)
    assert set(found) == {version.ref, f"{version.ref} trial 0", f"{version.ref} trial 1"}
    parent = found[version.ref]
    won, failed = (found[f"{version.ref} trial {index}"] for index in (0, 1))
    assert {run.data.tags["mlflow.parentRunId"] for run in (won, failed)} == {parent.info.run_id}
    assert won.data.params == {"training.learning_rate": "0.01"}
    assert won.data.metrics == {"accuracy": 0.81, "loss": 0.4, "steps": 80}
    assert won.data.tags["tutti.trial_state"] == "won"
    assert (won.info.status, failed.info.status) == ("FINISHED", "FAILED")
    assert failed.data.metrics == {"steps": 3}
    files = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert "sweep.json" in files


def test_a_delivery_that_broke_off_makes_no_trial_twice(
    mirror: MlflowMirror,
    make_version: Make,
    client: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    version = make_version(sweep=SWEEP)
    ends = iter([None, ConnectionError("gone"), None, None, None])
    terminate = type(client).set_terminated

    def breaking(self: Any, *args: Any, **options: Any) -> None:
        error = next(ends)
        if error is not None:
            raise error
        terminate(self, *args, **options)

    monkeypatch.setattr(type(client), "set_terminated", breaking)
    assert mirror.deliver().num_delivered == 0
    assert runs(client)[f"{version.ref} trial 1"].info.status == "RUNNING"
    assert mirror.deliver() == Delivery(1, 0)
    experiment = client.get_experiment_by_name("tutti")
    assert len(client.search_runs([experiment.experiment_id])) == 3
    assert runs(client)[f"{version.ref} trial 1"].info.status == "FAILED"
    assert runs(client)[version.ref].info.status == "FINISHED"
