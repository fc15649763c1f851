"""`tutti mlflow sync` with a real MLflow on SQLite: what differs is shown, and repaired as told."""

from pathlib import Path

import pytest
import torch

from encoders.files.weights_file import dump_tensors
from orchestrator import load_from_mlflow
from orchestrator.domain.prompt_version import Lineage, PromptRef, TrainedPrompt
from orchestrator.tracking.mlflow_client import open_client
from tests.cli.conftest import Run, open_tutti


@pytest.fixture
def mlflow_uri(home: Path) -> str:
    """An MLflow that has colour@1 in production, and colour@2."""
    with open_tutti(home) as tutti:
        parts = tutti.parts
        for seed in (1, 2):
            tokens = torch.full((4, 8), float(seed))
            artifact = parts.artifacts.put_bytes(dump_tensors({"prompt_embeddings": tokens}))
            config = {"template": "{prompt:4}{word} {colour}", "answer": "colour"}
            sizes = {"num_virtual_tokens": 4, "token_dim": 8, "metric": "accuracy"}
            lineage = Lineage("tiny", "f" * 64, {"train": "d"}, {"train": 8}, "s", seed, "0.1.0")
            artifacts = {"encoder": artifact, "prompt_embeddings": artifact}
            trained = TrainedPrompt("colour", config | sizes, {"accuracy": 0.5}, artifacts, lineage)
            parts.prompts.register(trained)
        parts.prompts.promote(PromptRef("colour", 1), "production", "ann")
        assert tutti.deliver().error is None
    return f"sqlite:///{home}/mlflow.db"


def test_sync_shows_and_repairs_what_differs(run: Run, mlflow_uri: str, home: Path) -> None:
    settled = run("mlflow", "sync")
    assert (settled.code, settled.out) == (0, "")
    assert "MLflow and the registry agree" in settled.err
    loaded = load_from_mlflow("models:/colour@production", mlflow_uri)
    assert (loaded.ref, float(loaded.virtual_tokens.mean())) == ("colour@1", 1.0)

    open_client(mlflow_uri).set_registered_model_alias("colour", "production", "2")
    for options in ([], ["--dry-run"], ["--report"]):
        shown = run("mlflow", "sync", *options)
        assert shown.code == 1
        assert "alias moved" in shown.out
        assert "colour@production" in shown.out
    adopted = run("mlflow", "sync", "--adopt", "--task", "colour", "--json").json
    assert [each["done"] for each in adopted["repairs"]] == ["colour@2 promoted"]
    assert adopted["is_settled"]
    with open_tutti(home) as tutti:
        move = tutti.history("colour")[0]
        assert (move.from_version, move.to_version) == (1, 2)
        assert move.actor == f"mlflow, adopted by {tutti.parts.actor}"
    assert run("mlflow", "sync", "--json").json == {
        "repairs": [],
        "error": None,
        "is_settled": True,
    }
