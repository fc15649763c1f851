"""`tutti prompts diff, compare, lineage, stale`, for people and for scripts."""

from pathlib import Path

import pytest
import torch

from encoders.files.weights_file import dump_tensors
from orchestrator.domain.prompt_version import Lineage, TrainedPrompt
from tests.cli.conftest import Run, open_tutti
from tests.tiny import colour_rows, make_tiny_base, write_rows

CONFIG = {
    "num_virtual_tokens": 4,
    "token_dim": 64,
    "template": "{word}:{prompt:4} {colour}",
    "answer": "colour",
    "metric": "accuracy",
    "candidates": ["red", "blue"],
    "ends_answer": False,
    "max_answer_tokens": 5,
    "encoder": {"type": "mlp"},
}


@pytest.fixture(autouse=True)
def two_versions(home: Path) -> None:
    """colour@1 and colour@2, of other virtual tokens and steps, on the tiny base."""
    with open_tutti(home) as tutti:
        lineage = Lineage("tiny", tutti.base("tiny").fingerprint, {}, {}, "s" * 64, 7, "0.1.0")
        for seed in (1, 2):
            tokens = torch.randn(4, 64, generator=torch.Generator().manual_seed(seed))
            weights = dump_tensors({"prompt_embeddings": tokens})
            artifact = tutti.parts.artifacts.put_bytes(weights)
            files = {"encoder": artifact, "prompt_embeddings": artifact}
            config, metrics = {**CONFIG, "training": {"steps": seed}}, {"accuracy": seed / 4}
            tutti.parts.prompts.register(TrainedPrompt("colour", config, metrics, files, lineage))


def test_a_diff_shows_what_differs(run: Run) -> None:
    text = run("prompts", "diff", "colour@1", "colour@2").out
    assert [line.split() for line in text.splitlines() if line.startswith("training")] == [
        ["training.steps", "1", "2"]
    ]
    assert "nearest, colour@2" in text
    found = run("prompts", "diff", "colour@1", "colour", "--json").json
    assert found["metrics"] == [{"name": "accuracy", "a": 0.25, "b": 0.5}]
    assert [len(token["nearest_a"]) for token in found["tokens"]] == [3] * 4


def test_a_comparison_says_which_is_better_or_that_none_is(run: Run, tasks: Path) -> None:
    data = write_rows(tasks / "rows.jsonl", colour_rows(12))
    found = run("prompts", "compare", "colour@1", "colour@2", "--data", data, "--json").json
    assert [each["ref"] for each in found["versions"]] == ["colour@1", "colour@2"]
    sums = sum(found[f"{which}_right"] for which in ("both", "only_a", "only_b", "neither"))
    assert sums == found["num_rows"] == 12
    done = run("prompts", "compare", "colour@1", "colour@2", "--data", data)
    assert done.out.splitlines()[-1] == found["verdict"]
    refused = run("prompts", "compare", "colour@1", "colour@1", "--data", data)
    assert (refused.code, refused.out) == (2, "")
    assert "both are colour@1" in refused.err


def test_a_lineage_is_a_tree_and_a_picture(run: Run, tasks: Path) -> None:
    done = run("prompts", "lineage", "colour@2", "--picture", "made.svg")
    assert done.out.splitlines()[0].startswith("colour@2 ")
    assert "└── parent colour@1" in done.out
    assert done.err == "drawn: made.svg\n"
    assert (tasks / "made.svg").read_bytes().startswith(b"<?xml")
    found = run("prompts", "lineage", "colour@2", "--json").json
    assert (found["ref"], found["is_stale"]) == ("colour@2", False)
    assert [each["ref"] for each in found["parents"]] == ["colour@1"]
    refused = run("prompts", "lineage", "colour@2", "--picture", "made.pdf")
    assert (refused.code, "a picture is a .svg or a .png" in refused.err) == (2, True)


def test_stale_prompts_are_listed_with_what_trains_them_again(
    run: Run, home: Path, tmp_path: Path
) -> None:
    fresh = run("prompts", "stale")
    assert (fresh.code, fresh.out) == (0, "")
    assert "no prompt is stale" in fresh.err
    with open_tutti(home) as tutti:
        old = tutti.base("tiny").fingerprint
        tutti.add_base("tiny", make_tiny_base(tmp_path / "new", seed=3), replace=True)
    text = run("prompts", "stale").out
    assert "colour@2" in text
    assert "colour@1" not in text
    found = run("prompts", "stale", "--write", "again", "--json").json
    assert [(each["ref"], each["trained_on"]) for each in found["stale"]] == [("colour@2", old)]
    assert [each["can_retrain"] for each in found["stale"]] == [False]
    assert found["specs"] == []


@pytest.mark.parametrize(
    "command",
    [
        ("diff", "colour@1", "colour@9"),
        ("compare", "colour@1", "colour@2", "--data", "nowhere.jsonl"),
        ("lineage", "../x"),
    ],
)
def test_wrong_input_exits_with_2_and_no_traceback(run: Run, command: tuple[str, ...]) -> None:
    done = run("prompts", *command)
    assert (done.code, done.out) == (2, "")
    assert "Traceback" not in done.err
