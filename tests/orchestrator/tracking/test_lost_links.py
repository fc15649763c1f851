"""MLflow itself says what it has lost."""

from collections.abc import Callable

import pytest

from orchestrator.domain.prompt_version import PromptVersion
from orchestrator.tracking.lost_links import find_lost_links
from orchestrator.tracking.mlflow_client import open_client
from orchestrator.tracking.mlflow_mirror import MlflowMirror
from tests.orchestrator.tracking.memory_registry import MemoryRegistry

Link = tuple[str, int, str, str | None]


@pytest.fixture
def link(
    mirror: MlflowMirror, make_version: Callable[..., PromptVersion], registry: MemoryRegistry
) -> Link:
    """What MLflow calls a delivered version."""
    made = make_version()
    assert mirror.deliver().error is None
    version = registry.versions[made.task, made.number]
    assert version.run_id is not None
    return version.task, version.number, version.run_id, version.model_version


def test_only_what_is_gone_is_lost(tracking_uri: str, link: Link) -> None:
    task, _, run_id, model_version = link
    assert find_lost_links(tracking_uri, [link]) == []
    strange = (task, 7, "0" * 32, "1")
    (lost,) = find_lost_links(tracking_uri, [link, strange])
    assert (lost.number, lost.what) == (7, f"its run {'0' * 32} is gone")
    client = open_client(tracking_uri)
    client.delete_model_version(task, model_version)
    (lost,) = find_lost_links(tracking_uri, [link])
    assert lost.what == f"version {model_version} of the model {task} is gone"
    client.delete_run(run_id)
    (lost,) = find_lost_links(tracking_uri, [link])
    assert lost.what == f"its run {run_id} is gone"


@pytest.mark.parametrize("run_id", ["", "'; DROP TABLE runs", "x" * 500, "\N{SNOWMAN}"])
def test_an_id_that_is_none_is_lost(tracking_uri: str, run_id: str) -> None:
    (lost,) = find_lost_links(tracking_uri, [("color", 1, run_id, None)])
    assert lost.number == 1
