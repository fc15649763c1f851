"""A tiny base, and tiny tasks on it, without files, Ray or DeepSpeed's engine."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from encoders.bank.encoder_bank import EncoderBank
from encoders.packed.context_cache import CacheBudget, ContextCache
from encoders.packed.packed_model import PackedModel
from encoders.text.tokenization import TextTokenizer
from orchestrator.domain.dataset import Dataset, parse_dataset
from orchestrator.domain.gang import GangEvent
from orchestrator.domain.task_spec import TaskSpec
from orchestrator.training.rank_loop import RankLoop
from orchestrator.training.rank_passes import RankPasses
from orchestrator.training.sharded_base import ShardedBase
from orchestrator.training.task_data import TaskData, encode_task
from orchestrator.training.task_run import TaskRun
from orchestrator.training.task_trainer import TaskTrainer
from tests.tiny import colour_rows, make_tiny_base

WIDTH = 64
MAX_LENGTH = 256
MAX_POSITIONS = 1024

Rows = list[dict[str, str]]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_base(tmp_path_factory.mktemp("tiny-base"))


@pytest.fixture(scope="session")
def tokenizer(base_folder: Path) -> TextTokenizer:
    return TextTokenizer.load(base_folder)


@pytest.fixture(scope="session")
def base(base_folder: Path) -> ShardedBase:
    """The base on the only rank there is, not sharded."""
    return ShardedBase(PackedModel.load(base_folder), 0)


def make_spec(task: str = "colour", **changes: Any) -> TaskSpec:
    """A task on colour rows; `training` and `evaluation` keep what they do not name."""
    training = {"steps": 4, "batch_size": 4, "learning_rate": 0.01, "seed": 1}
    return TaskSpec.model_validate(
        {
            "task": task,
            "base": "tiny",
            "template": "{word}:{prompt:4} {colour}",
            "answer": "colour",
            "encoder": {"type": "mlp", "hidden_size": 16},
            "data": {"train": "t.jsonl", "eval": "e.jsonl"},
            **changes,
            "training": training | changes.get("training", {}),
            "evaluation": {"every": 2} | changes.get("evaluation", {}),
        }
    )


def make_datasets(**splits: Rows) -> dict[str, Dataset]:
    """Data sets by split: 10 rows to train on and 5 to evaluate by default."""
    rows = {"train": colour_rows(10), "eval": colour_rows(5, offset=100), **splits}
    return {
        split: parse_dataset("\n".join(map(json.dumps, each)).encode(), f"{split}.jsonl", ())
        for split, each in rows.items()
    }


MakeData = Callable[..., TaskData]
MakeTrainer = Callable[..., TaskTrainer]


@pytest.fixture(scope="session")
def make_data(tokenizer: TextTokenizer) -> MakeData:
    def make(spec: TaskSpec, max_length: int = MAX_LENGTH, **splits: Rows) -> TaskData:
        return encode_task(spec, make_datasets(**splits), tokenizer, max_length)

    return make


@pytest.fixture(scope="session")
def make_trainer(make_data: MakeData) -> MakeTrainer:
    """A trainer of a task, all in one bank; keywords that name splits are rows, the others change
    the spec."""
    bank = EncoderBank()

    def make(task: str = "colour", **changes: Any) -> TaskTrainer:
        splits = {name: changes.pop(name) for name in ("train", "eval", "test") if name in changes}
        spec = make_spec(task, **changes)
        return TaskTrainer(spec, make_data(spec, **splits), WIDTH, bank=bank)

    return make


class Loop:
    """A RankLoop's run, and everything it told."""

    def __init__(
        self,
        base: ShardedBase,
        trainers: Sequence[TaskTrainer | TaskRun],
        max_positions: int = MAX_POSITIONS,
        cache_bytes: int = 1 << 30,
        **changes: Any,
    ) -> None:
        self.runs = [
            each if isinstance(each, TaskRun) else TaskRun(f"job-{each.spec.task}", each)
            for each in trainers
        ]
        self.events: list[GangEvent] = []
        self.finished: list[TaskRun] = []
        self.cache = ContextCache(base.model, CacheBudget(cache_bytes))
        passes = RankPasses(base, self.cache, max_positions)
        RankLoop(base, passes, self.runs, self.events.extend, self.finished.append, **changes).run()

    def events_of(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]
