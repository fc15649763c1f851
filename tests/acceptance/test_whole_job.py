"""Train, register, promote, tell MLflow, run a batch: through the command line, on real parts."""

import json
from pathlib import Path

import pytest

from tests.acceptance.conftest import Trained
from tests.tiny import write_task

pytestmark = pytest.mark.ray


def test_training_registers_a_version_for_every_task(trained: Trained) -> None:
    assert trained.done.returncode == 0, trained.done.stderr
    versions = trained.home.json("prompts", "list")
    assert {v["ref"] for v in versions} == {
        "colour-mlp@1",
        "colour-lstm@1",
        "refused@1",
        "spelled@1",
    }
    lineage = trained.home.json("prompts", "show", "colour-mlp@production")["lineage"]
    base = trained.home.json("base", "show", "tiny")
    assert lineage["base_fingerprint"] == base["fingerprint"]
    assert set(lineage["datasets"]) == {"train", "eval"}
    assert lineage["num_rows"] == {"train": 16, "eval": 6}
    assert lineage["seed"] == 1
    assert lineage["parent"] is None
    assert lineage["mlflow_run_id"]
    assert lineage["code_version"].startswith("0.1.0")


def test_all_tasks_trained_in_one_gang_of_two_workers(trained: Trained) -> None:
    logs = trained.home.folder / "logs"
    gangs = sorted(logs.glob("gang-*"))
    assert len(gangs) == 1
    assert {log.name for log in gangs[0].iterdir()} == {"worker-0.log", "worker-1.log"}
    assert str(logs) in trained.done.stderr


def test_neither_ray_nor_deepspeed_is_heard(trained: Trained) -> None:
    noise = ("ray::", "INFO worker.py", "deepspeed", "Loading weights", "[W", "WARNING", "alembic")
    said = trained.done.stdout + trained.done.stderr.replace("importing torch and deepspeed", "")
    said = said.replace("logs of Ray, DeepSpeed", "")
    assert not [word for word in noise if word in said], said


def test_artifacts_are_stored_by_digest_and_hold_the_weights(trained: Trained) -> None:
    from encoders.files.weights_file import load_tensors
    from orchestrator.artifacts.artifact_store import ArtifactStore

    store = ArtifactStore(str(trained.home.folder / "artifacts"))
    version = trained.home.json("prompts", "show", "colour-mlp@1")
    assert set(version["artifacts"]) == {"encoder", "prompt_embeddings", "curve"}
    table = store.get_bytes(version["artifacts"]["prompt_embeddings"]["digest"])
    assert load_tensors(table, {"prompt_embeddings": (4, 64)})
    curve = json.loads(store.get_bytes(version["artifacts"]["curve"]["digest"]))
    assert [step for step, _ in curve["loss"]] == [1, 2, 3, 4]


def test_a_refused_gate_says_which_condition_with_both_numbers(trained: Trained) -> None:
    said = trained.done.stderr
    assert "refused@1" in said
    assert "accuracy > 0.99 is false: " in said
    assert "against 0.99" in said
    assert trained.home.json("prompts", "show", "refused@1")["aliases"] == []
    again = trained.home.tutti("prompts", "promote", "refused@1")
    assert again.returncode == 1
    assert "against 0.99" in again.stderr


def test_mlflow_has_a_run_and_a_model_version_for_every_prompt(trained: Trained) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{trained.home.folder / 'mlflow.db'}")
    for task in ("colour-mlp", "colour-lstm", "refused", "spelled"):
        version = trained.home.json("prompts", "show", f"{task}@1")
        run = client.get_run(version["lineage"]["mlflow_run_id"])
        assert run.info.status == "FINISHED"
        assert run.data.params
        curve = client.get_metric_history(run.info.run_id, "training/loss")
        assert [point.step for point in curve] == [1, 2, 3, 4]
        metric = version["config"]["metric"]
        held_out = client.get_metric_history(run.info.run_id, f"training/eval_{metric}")
        assert [point.step for point in held_out] == [2, 4]
        files = {file.path for file in client.list_artifacts(run.info.run_id)}
        assert any(name.endswith(".png") for name in files)
        assert {"encoder.safetensors", "prompt_embeddings.safetensors"} <= files
        assert len(client.search_model_versions(f"name='{task}'")) == 1
    alias = client.get_model_version_by_alias("colour-mlp", "production")
    assert alias.tags["tutti.ref"] == "colour-mlp@1"


def test_training_again_trains_nothing(trained: Trained) -> None:
    before = trained.home.json("prompts", "list")
    again = trained.home.tutti("train", *trained.specs)
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("unchanged") == 4
    assert "worker" not in again.stderr
    assert trained.home.json("prompts", "list") == before
    assert len(trained.home.json("jobs", "list")) == 4


def test_jobs_tell_how_they_ended(trained: Trained) -> None:
    jobs = trained.home.json("jobs", "list", "--task", "colour-mlp")
    assert [job["state"] for job in jobs] == ["succeeded"]
    assert jobs[0]["progress"]["step"] == 4
    shown = trained.home.tutti("jobs", "show", jobs[0]["id"][:10])
    assert "attempt 1  succeeded" in shown.stdout


def test_batch_answers_mixed_tasks_in_order(trained: Trained, tmp_path: Path) -> None:
    lines = [
        {"task": "colour-mlp", "fields": {"word": "a7"}},
        {"task": "spelled", "fields": {"word": "b8"}, "id": "x-1"},
        {"task": "colour-lstm", "fields": {"word": "a9"}, "version": 1},
        {"task": "nobody", "fields": {}},
        {"task": "colour-mlp", "fields": {"noun": "a9"}},
        {"task": "refused", "fields": {"word": "a9"}},
        {"task": "refused", "fields": {"word": "a9"}, "version": 1},
        {"task": "colour-mlp", "fields": {"word": "a" * 400}},
    ]
    source, output = tmp_path / "in.jsonl", tmp_path / "out" / "answers.jsonl"
    text = "".join(json.dumps(line) + "\n" for line in lines) + "no json\n"
    source.write_text(text * 5, encoding="utf-8")
    done = trained.home.tutti("batch", "run", "--input", source, "--output", output)
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in output.read_text().splitlines()]
    assert [answer["row"] for answer in answers] == list(range(1, 46))
    first = answers[:9]
    assert [("error" in a) for a in first] == [
        False,
        False,
        False,
        True,
        True,
        True,
        False,
        True,
        True,
    ]
    assert first[0]["answer"] in ("red", "blue")
    assert 0 < first[0]["score"] <= 1
    assert first[1]["id"] == "x-1"
    digest = trained.home.json("prompts", "show", "colour-mlp@1")["digest"]
    assert first[0]["digest"] == digest
    for index, answer in enumerate(answers):
        same = {k: v for k, v in answer.items() if k not in ("row", "line", "error")}
        assert same == {
            k: v for k, v in first[index % 9].items() if k not in ("row", "line", "error")
        }
    manifest = json.loads((output.parent / "answers.jsonl.manifest.json").read_text())
    assert manifest["errors"] == 25
    assert manifest["versions"]["colour-mlp@1"]["digest"] == digest


def test_batch_refuses_bad_input_before_it_starts(trained: Trained, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    missing = trained.home.tutti("batch", "run", "--input", "none.jsonl", "--output", output)
    assert missing.returncode == 2
    assert "none.jsonl: no such file" in missing.stderr
    (tmp_path / "empty.jsonl").write_bytes(b"")
    empty = trained.home.tutti(
        "batch", "run", "--input", tmp_path / "empty.jsonl", "--output", output
    )
    assert empty.returncode == 2
    assert not output.exists()


def test_stage_3_and_force_train_the_same_prompt_again(trained: Trained) -> None:
    """ZeRO-3 splits the base over both workers: by a setting or by a spec, which can also have both
    workers share its rows."""
    sharding = {"zero_stage": 3, "data_parallel": True}
    by_spec = write_task(trained.home.tasks / "sharded", "colour-sharded", sharding=sharding)
    done = trained.home.tutti(
        "train", "--force", trained.specs[0], by_spec, env={"TUTTI_ZERO_STAGE": "3"}
    )
    assert done.returncode == 0, done.stderr
    first = trained.home.json("prompts", "show", "colour-mlp@1")
    sharded = trained.home.json("prompts", "show", "colour-sharded@1")
    assert sharded["metrics"]["loss"] == pytest.approx(first["metrics"]["loss"], abs=1e-4)
    jobs = trained.home.json("jobs", "list", "--task", "colour-mlp")
    assert [job["state"] for job in jobs] == ["succeeded", "succeeded"]
    forced = trained.home.json("prompts", "show", f"colour-mlp@{jobs[0]['version']}")
    assert forced["metrics"]["loss"] == pytest.approx(first["metrics"]["loss"], abs=1e-4)


def test_queued_jobs_wait_for_a_training_and_a_bad_one_ends_the_others_well(
    trained: Trained,
) -> None:
    home = trained.home
    wild = {
        "steps": 40,
        "batch_size": 4,
        "learning_rate": 1e30,
        "optimizer": "sgd",
        "max_grad_norm": None,
        "schedule": "constant",
    }
    sweep = {"over": {"training.learning_rate": [1e30, 0.001, 0.01]}, "halving": {"first": 4}}
    swept = {"training": {**wild, "steps": 8}, "sweep": sweep}
    specs = [
        write_task(home.tasks / "queued", "good"),
        write_task(home.tasks / "queued", "wild", training=wild),
        write_task(home.tasks / "queued", "swept", **swept),
    ]
    submitted = home.tutti("submit", *specs)
    assert submitted.returncode == 0, submitted.stderr
    assert [line.split()[-1] for line in submitted.stdout.splitlines()] == ["queued"] * 3
    assert home.tutti("submit", specs[0]).stdout.split()[-2:] == ["unchanged,", "queued"]
    done = home.tutti("train")
    assert done.returncode == 1
    jobs = {job["task"]: job for job in home.json("jobs", "list")}
    assert jobs["good"]["state"] == "succeeded"
    assert home.json("prompts", "show", "good@production")["version"] == 1
    assert jobs["wild"]["state"] == "failed"
    assert "not a finite number" in jobs["wild"]["error"]
    assert jobs["swept"]["state"] == "succeeded"
    assert jobs["swept"]["progress"]["stage"].startswith("done: trial ")
    trials = home.json("jobs", "show", jobs["swept"]["id"])["trials"]
    assert "not a finite number" in trials[0]["state"]
    states = {trial["state"].partition(":")[0] for trial in trials}
    assert states == {"failed", "stopped at step 4", "won"}


def test_promoting_by_hand_needs_the_gate_or_force(trained: Trained) -> None:
    moved = trained.home.tutti("prompts", "promote", "refused@1", "--to", "staging")
    assert moved.returncode == 0, moved.stderr
    assert trained.home.json("prompts", "show", "refused@staging")["version"] == 1
    forced = trained.home.tutti(
        "prompts",
        "promote",
        "refused@1",
        "--to",
        "canary",
        "--when",
        "accuracy > 2",
        "--force",
        "--reason",
        "a test",
    )
    assert forced.returncode == 0, forced.stderr
    unknown = trained.home.tutti("prompts", "promote", "refused@9")
    assert unknown.returncode == 2


def test_doctor_finds_all_well(trained: Trained) -> None:
    done = trained.home.tutti("doctor")
    assert done.returncode == 0, done.stdout
    assert "FAIL" not in done.stdout
