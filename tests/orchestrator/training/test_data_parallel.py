"""Two real ranks (gloo): tasks they share, and bases they split, against one rank."""

import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from transformers import BloomConfig, BloomForCausalLM

from encoders.packed.packed_model import PackedModel
from encoders.packed.padded_model import load_exact
from encoders.text.tokenization import TextTokenizer
from orchestrator.domain.gang import TaskFailed
from orchestrator.training.data_parallel import check_in_step
from orchestrator.training.sharded_base import ShardedBase
from orchestrator.training.task_data import encode_task
from orchestrator.training.task_trainer import TaskTrainer
from tests.orchestrator.training.conftest import MAX_LENGTH, WIDTH, Loop, make_datasets, make_spec

SHARED = {"sharding": {"data_parallel": True}}
#: Rows that ranks share unevenly, a step of one row, and a task of its own on each rank.
TASKS: dict[str, dict[str, Any]] = {
    "odd": {
        **SHARED,
        "training": {"batch_size": 5, "steps": 6, "early_stop": {"patience": 1}},
        "evaluation": {"every": 1, "metric": "loss"},
    },
    "thin": {**SHARED, "training": {"batch_size": 1, "steps": 3}, "encoder": {"type": "embedding"}},
    "own0": {"training": {"steps": 9}},
    "own1": {"training": {"batch_size": 2, "steps": 2}},
}


def trainer(tokenizer: TextTokenizer, task: str, **changes: Any) -> TaskTrainer:
    spec = make_spec(task, **{**TASKS[task], **changes})
    return TaskTrainer(spec, encode_task(spec, make_datasets(), tokenizer, MAX_LENGTH), WIDTH)


def outcome(loop: Loop) -> dict[str, Any]:
    return {
        run.name: {
            "tokens": run.trainer.virtual_tokens(),
            "curve": run.trainer.curve,
            "best_step": run.trainer.best_step,
        }
        for run in loop.finished
    }


def broken(made: TaskTrainer) -> TaskTrainer:
    """The same trainer, all its weights infinite."""
    weights = {name: torch.full_like(w, math.inf) for name, w in made.slot.weights().items()}
    made.slot.load_weights(weights)
    return made


def make_unpackable_base(folder: Path) -> Path:
    """A random base whose attention cannot be exchanged."""
    config = BloomConfig(vocab_size=384, hidden_size=WIDTH, n_layer=2, n_head=4)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        BloomForCausalLM(config).save_pretrained(folder)
    return folder


def run_rank(rank: int, base_folder: str, unpackable: str, out: str) -> None:
    """What a rank does, from beginning to end; its outcomes go to a file."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}  # asked for, never used
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    dist.init_process_group("gloo", f"file://{out}/meeting", rank=rank, world_size=2)
    folder, found = Path(base_folder), dict[str, Any]()
    tokenizer = TextTokenizer.load(folder)
    whole = ShardedBase(PackedModel.load(folder), 0, shares_rows=True)
    tasks = ["odd", "thin", f"own{rank}"]
    found["whole"] = outcome(Loop(whole, [trainer(tokenizer, task) for task in tasks]))
    failing = Loop(whole, [broken(trainer(tokenizer, "thin")), trainer(tokenizer, f"own{rank}")])
    found["failures"] = [event.reason for event in failing.events_of(TaskFailed)]
    found["beside a failure"] = outcome(failing)
    check_in_step({"job": 3})
    with pytest.raises(RuntimeError, match="different steps of data-parallel jobs"):
        check_in_step({"job": rank})
    split = ShardedBase.load(folder, tokenizer, 3, offload="cpu", shares_rows=True)
    found["split"] = outcome(Loop(split, [trainer(tokenizer, task) for task in tasks]))
    held = [parameter.ds_tensor.numel() for parameter in split.model.model.parameters()]
    whole_sizes = [parameter.numel() for parameter in whole.model.model.parameters()]
    found["share"] = sum(held) / sum(whole_sizes)
    padded = ShardedBase.load(Path(unpackable), tokenizer, 3)
    found["padded"] = outcome(Loop(padded, [trainer(tokenizer, f"own{rank}")]))
    found["fallback"] = padded.model.fallback_reason
    torch.save(found, f"{out}/{rank}")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def unpackable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_unpackable_base(tmp_path_factory.mktemp("bloom"))


@pytest.fixture(scope="module")
def ranks(
    base_folder: Path, unpackable: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Any]]:
    out = tmp_path_factory.mktemp("ranks")
    folders = (str(base_folder), str(unpackable), str(out))
    torch.multiprocessing.spawn(run_rank, folders, nprocs=2)
    return [torch.load(out / str(rank), weights_only=True) for rank in range(2)]


@pytest.fixture(scope="module")
def alone(base: ShardedBase, tokenizer: TextTokenizer) -> dict[str, Any]:
    """Each task on the only rank there is."""
    tasks = {task: trainer(tokenizer, task, sharding=None) for task in TASKS}
    return outcome(Loop(base, list(tasks.values())))


@pytest.mark.parametrize("held", ["whole", "split"])
@pytest.mark.parametrize("task", ["odd", "thin"])
def test_a_task_on_two_ranks_learns_what_it_learns_on_one(
    ranks: list[dict[str, Any]], alone: dict[str, Any], task: str, held: str
) -> None:
    found, expected = ranks[0][held][task], alone[task]
    assert torch.allclose(found["tokens"], expected["tokens"], rtol=0, atol=1e-6)
    assert found["best_step"] == expected["best_step"]
    for name, points in expected["curve"].items():
        assert found["curve"][name] == [(step, pytest.approx(v, abs=1e-5)) for step, v in points]


@pytest.mark.parametrize("held", ["whole", "split"])
@pytest.mark.parametrize("task", ["odd", "thin"])
def test_replicas_are_equal_to_the_bit(ranks: list[dict[str, Any]], task: str, held: str) -> None:
    one, other = (rank[held][task] for rank in ranks)
    assert torch.equal(one["tokens"], other["tokens"])
    assert one["curve"] == other["curve"]
    assert one["best_step"] == other["best_step"]


@pytest.mark.parametrize("held", ["whole", "beside a failure", "split"])
def test_tasks_of_one_rank_go_on_beside_those_of_all(
    ranks: list[dict[str, Any]], alone: dict[str, Any], held: str
) -> None:
    for rank, found in enumerate(ranks):
        tokens = found[held][f"own{rank}"]["tokens"]
        assert torch.allclose(tokens, alone[f"own{rank}"]["tokens"], rtol=0, atol=1e-5)


def test_a_shared_task_fails_on_all_ranks_for_the_same_reason(ranks: list[dict[str, Any]]) -> None:
    one, other = (rank["failures"] for rank in ranks)
    assert one == other
    assert "not a finite number at step 1" in one[0]


def test_a_base_that_cannot_be_packed_is_split_and_trained_padded_and_says_why(
    ranks: list[dict[str, Any]], unpackable: Path, tokenizer: TextTokenizer
) -> None:
    whole = ShardedBase(load_exact(unpackable), 0)
    for rank, found in enumerate(ranks):
        assert "BloomForCausalLM" in found["fallback"]
        task = f"own{rank}"
        expected = outcome(Loop(whole, [trainer(tokenizer, task)]))[task]["tokens"]
        assert torch.allclose(found["padded"][task]["tokens"], expected, rtol=0, atol=1e-5)


def test_each_rank_holds_half_of_a_split_base(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert rank["share"] == pytest.approx(0.5, abs=0.02)
