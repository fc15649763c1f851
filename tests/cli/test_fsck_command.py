import os
from pathlib import Path

import pytest

from orchestrator.domain.prompt_version import Lineage, TrainedPrompt
from tests.cli.conftest import Run, open_tutti


@pytest.fixture
def artifact(home: Path) -> Path:
    """The file of an artifact of the one version that is there."""
    with open_tutti(home) as tutti:
        store = tutti.parts.artifacts
        artifacts = {
            name: store.put_bytes(name.encode())
            for name in ("encoder", "prompt_embeddings", "curve")
        }
        lineage = Lineage("tiny", "f" * 64, {"train": "d"}, {"train": 8}, "s", 7, "0.1.0")
        config = {"metric": "accuracy", "encoder": {"type": "mlp"}}
        tutti.parts.prompts.register(
            TrainedPrompt("colour", config, {"accuracy": 0.5}, artifacts, lineage)
        )
    digest = artifacts["encoder"].digest
    return home / "artifacts" / "sha256" / digest[:2] / digest


@pytest.fixture(autouse=True)
def no_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    """An MLflow that does not answer: making its tables takes seconds."""
    monkeypatch.setenv("TUTTI_MLFLOW_TRACKING_URI", "http://127.0.0.1:1")


def test_a_registry_that_is_well_exits_with_0(run: Run, artifact: Path) -> None:
    done = run("fsck")
    assert (done.code, done.out) == (0, "")
    assert "all is well" in done.err
    assert "not checked: MLflow at http://127.0.0.1:1" in done.err


def test_a_finding_exits_with_3_and_says_what_to_do(run: Run, artifact: Path) -> None:
    artifact.write_bytes(b"encodeR")
    done = run("fsck")
    assert done.code == 3
    assert "artifact-altered" in done.out
    assert "colour@1 (encoder)" in done.out
    assert "-> Put it back with" in done.out
    assert "Traceback" not in done.err
    assert run("fsck", "--quick").code == 0


def test_findings_for_scripts(run: Run, artifact: Path) -> None:
    import json

    artifact.unlink()
    done = run("fsck", "--quick", "--json")
    assert done.code == 3
    report = json.loads(done.out)
    assert not report["is_clean"]
    (finding,) = report["findings"]
    assert finding["kind"] == "artifact-missing"
    assert {"where", "what", "remedy", "done", "is_mended"} <= set(finding)


def test_a_repair_from_a_copy_exits_with_0(run: Run, artifact: Path, home: Path) -> None:
    import shutil

    shutil.copytree(home / "artifacts", home / "copy")
    artifact.unlink()
    done = run("fsck", "--repair", "--from", home / "copy")
    assert done.code == 0
    assert "mended: put back from" in done.out
    assert artifact.read_bytes() == b"encoder"


def test_garbage_is_shown_and_removed_when_asked(run: Run, artifact: Path, home: Path) -> None:
    with open_tutti(home) as tutti:
        orphan = tutti.parts.artifacts.put_bytes(b"orphan").digest
    assert run("gc", "--json").json["due"] == []
    assert [f["num_bytes"] for f in run("gc", "--json").json["waiting"]] == [6]
    done = run("gc", "--delete", "--grace", "1s")
    assert (done.code, orphan in done.out) == (0, False)
    with open_tutti(home) as tutti:  # as if the mark were old
        note = home / "artifacts" / "gc.json"
        note.write_bytes(note.read_bytes().replace(b'["20', b'["19'))
    shown = run("gc")
    assert orphan in shown.out
    assert "nothing was removed: add --delete" in shown.err
    assert [f["name"][-64:] for f in run("gc", "--delete", "--json").json["removed"]] == [orphan]
    assert artifact.exists()


def test_what_batch_runs_left_is_shown_and_removed_when_asked(run: Run, home: Path) -> None:
    folder = home / "evaluations" / ("e" * 32)
    folder.mkdir(parents=True)
    (folder / "rows-0.jsonl").write_bytes(b"rows")
    done = run("gc")
    assert (done.out.splitlines()[1:], "1 (4 bytes) in their grace" in done.err) == ([], True)
    for path in (folder / "rows-0.jsonl", folder):
        os.utime(path, (1, 1))
    shown = run("gc")
    assert (shown.code, str(folder) in shown.out, folder.exists()) == (0, True, True)
    assert "nothing was removed: add --delete" in shown.err
    assert run("gc", "--json").json["folders"]["due"] == [{"place": str(folder), "num_bytes": 4}]
    assert str(folder) in run("gc", "--delete").out
    assert not folder.exists()


@pytest.mark.parametrize("grace", ["", "0s", "-1d", "week"])
def test_a_grace_that_is_no_duration_exits_with_2(run: Run, home: Path, grace: str) -> None:
    done = run("gc", "--delete", "--grace", grace)
    assert (done.code, done.out) == (2, "")
    assert "Traceback" not in done.err
