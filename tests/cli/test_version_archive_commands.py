import json
from pathlib import Path

import pytest
import torch

from encoders.files.weights_file import dump_tensors
from orchestrator.domain.prompt_version import Lineage, TrainedPrompt
from tests.cli.conftest import Run, open_tutti
from tests.orchestrator.upkeep.conftest import CONFIG


@pytest.fixture(autouse=True)
def version(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """colour@1, and an MLflow that does not answer."""
    monkeypatch.setenv("TUTTI_MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    with open_tutti(home) as tutti:
        store, tokens = tutti.parts.artifacts, torch.ones(2, 4)
        artifacts = {
            "encoder": store.put_bytes(dump_tensors({"weight": tokens})),
            "prompt_embeddings": store.put_bytes(dump_tensors({"prompt_embeddings": tokens})),
            "curve": store.put_bytes(b"{}"),
        }
        lineage = Lineage("tiny", "f" * 64, {}, {}, "s", 0, "0.1.0")
        tutti.parts.prompts.register(TrainedPrompt("colour", CONFIG, {}, artifacts, lineage))


def test_an_archive_goes_from_one_registry_to_another(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "imported" not in run("prompts", "show", "colour").out
    done = run("prompts", "export", "colour", "-o", tmp_path / "c.tutti")
    assert (done.code, done.out) == (0, "colour@1\n")
    monkeypatch.setenv("TUTTI_HOME", str(tmp_path / "elsewhere"))
    first = run("prompts", "import", tmp_path / "c.tutti", "--json")
    assert [(each["ref"], each["is_new"]) for each in first.json] == [("colour@1", True)]
    assert "which is not here: `tutti base add`" in first.err
    assert run("prompts", "import", tmp_path / "c.tutti").out == "colour@1  was there already\n"
    lineage = run("prompts", "show", "colour@1", "--json").json["lineage"]
    assert lineage["job"] is None
    assert lineage["origin"]["ref"] == "colour@1"
    (told,) = [
        line for line in run("prompts", "show", "colour").out.splitlines() if "import" in line
    ]
    assert f"from colour@1 of {lineage['origin']['registry']}, made " in told


def test_what_cannot_be_exported_or_imported_exits_with_2(run: Run, tmp_path: Path) -> None:
    (tmp_path / "x").write_text(json.dumps({"a": 1}))
    for arguments in (
        ("export", "nothing", "-o", tmp_path / "y"),
        ("export", "-o", tmp_path / "y"),
        ("export", "a@b@c", "-o", tmp_path / "y"),
        ("import", tmp_path / "x"),
        ("import", tmp_path / "none"),
        ("import", tmp_path),
    ):
        done = run("prompts", *arguments)
        assert (done.code, done.out) == (2, ""), arguments
        assert "Traceback" not in done.err
    assert not (tmp_path / "y").exists()
