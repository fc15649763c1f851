"""Two real ranks (gloo): tasks they share, and bases they split, against one rank."""

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing

from encoders.packed.context_cache import CacheBudget, ContextCache
from encoders.packed.packed_model import PackedModel
from encoders.packed.padded_model import load_exact
from encoders.text.tokenization import TextTokenizer
from orchestrator.artifacts.artifact_store import ArtifactStore
from orchestrator.domain.gang import TaskFailed, TaskOrder, TaskWithdrawn
from orchestrator.training.board import Board
from orchestrator.training.checkpoint import Checkpointer
from orchestrator.training.data_parallel import check_in_step
from orchestrator.training.member import Member
from orchestrator.training.rank_loop import RankLoop
from orchestrator.training.rank_passes import RankPasses
from orchestrator.training.resident import Resident
from orchestrator.training.sharded_base import ShardedBase
from orchestrator.training.task_data import encode_task
from orchestrator.training.task_opening import TaskOpening
from orchestrator.training.task_run import TaskRun
from orchestrator.training.task_trainer import TaskTrainer
from tests.orchestrator.training.conftest import (
    MAX_LENGTH,
    MAX_POSITIONS,
    WIDTH,
    Loop,
    make_datasets,
    make_spec,
)
from tests.tiny import colour_rows, make_unpackable_base

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
#: One that comes when all ranks idle, and has to look its start up on all of them.
LATE: dict[str, Any] = {**SHARED, "encoder": {"init": {"from": "vocabulary"}}}


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
    found["resident"] = outcome_of_residents(rank, split, tokenizer, f"{out}/store")
    torch.save(found, f"{out}/{rank}")
    dist.destroy_process_group()


class Residents:
    """Two ranks that stay, under a board in the first one's process. Tasks come one after another
    and one leaves; then both idle, take up one more, and stop."""

    def __init__(self, rank: int, base: ShardedBase, tokenizer: TextTokenizer, store: str) -> None:
        self.board, self.num_asked, self.finished = Board(60.0), 0, list[TaskRun]()
        self.store = ArtifactStore(store)
        self.events: list[Any] = []
        self.board.start_group()
        member = Member(
            self.call, lambda method, _, events: self.events.extend(events), rank, 2, True
        )
        for each in range(2):
            self.board.join(member.incarnation, each, 2, "host")
        opening = TaskOpening(self.store, tokenizer, base, MAX_LENGTH)
        passes = RankPasses(base, ContextCache(base.model, CacheBudget(1 << 30)), MAX_POSITIONS)
        loop = RankLoop(base, passes, (), member.post, self.finished.append)
        keeper = Checkpointer(self.store, member.post, 1e9)
        Resident(loop, member.ask, opening, keeper, member.post, rank, "here").run()

    def call(self, method: str, *arguments: Any) -> Any:
        assert method == "sync"
        self.act(self.num_asked)
        self.num_asked += 1
        return self.board.sync(*arguments)

    def tell(self, method: str, incarnation: str, events: list[Any]) -> None:
        self.events += events

    def act(self, num_asked: int) -> None:
        """What happens before the first rank's n-th question."""
        match num_asked:
            case 0:
                self.board.admit([self.order("odd"), self.order("own0")])
            case 2:
                self.board.admit([self.order("thin"), self.order("own1")])
            case 4:
                self.board.withdraw("own0", 1, keeps=True)
            case 14:
                self.board.admit([self.order("late")])
            case 26:
                self.board.stop()

    def order(self, task: str) -> TaskOrder:
        rows = {"train": colour_rows(10), "eval": colour_rows(5, offset=100)}
        datasets = {
            split: self.store.put_bytes("\n".join(map(json.dumps, each)).encode()).digest
            for split, each in rows.items()
        }
        return TaskOrder(
            task, make_spec(task, **TASKS.get(task, LATE)), datasets, "f" * 64, 10.0, epoch=1
        )


def outcome_of_residents(
    rank: int, base: ShardedBase, tokenizer: TextTokenizer, store: str
) -> dict[str, Any]:
    residents = Residents(rank, base, tokenizer, store)
    found: dict[str, Any] = {
        run.name: {
            "tokens": run.trainer.virtual_tokens(),
            "curve": run.trainer.curve,
            "best_step": run.trainer.best_step,
        }
        for run in residents.finished
    }
    withdrawn = [e.job_id for e in residents.events if isinstance(e, TaskWithdrawn)]
    return found | {"withdrawn": withdrawn}


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


@pytest.mark.parametrize("task", ["odd", "thin"])
def test_ranks_that_step_together_admit_at_the_same_step(
    ranks: list[dict[str, Any]], alone: dict[str, Any], task: str
) -> None:
    one, other = (rank["resident"][task] for rank in ranks)
    assert torch.equal(one["tokens"], other["tokens"])
    assert one["curve"] == other["curve"]
    assert torch.allclose(one["tokens"], alone[task]["tokens"], rtol=0, atol=1e-6)


def test_idle_ranks_take_up_a_task_together(ranks: list[dict[str, Any]]) -> None:
    one, other = (rank["resident"]["late"] for rank in ranks)
    assert torch.equal(one["tokens"], other["tokens"])


def test_a_task_of_one_rank_leaves_while_the_others_step_on(
    ranks: list[dict[str, Any]], alone: dict[str, Any]
) -> None:
    assert sorted(job for rank in ranks for job in rank["resident"]["withdrawn"]) == ["own0"]
    (found,) = (rank["resident"]["own1"] for rank in ranks if "own1" in rank["resident"])
    assert torch.allclose(found["tokens"], alone["own1"]["tokens"], rtol=0, atol=1e-5)


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
