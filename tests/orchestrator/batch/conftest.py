"""A home with a tiny base and three registered prompts, and workers in this process: what a run
does is the same without Ray."""

import itertools
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from encoders.files.weights_file import dump_tensors
from orchestrator.batch.request import BatchRequest
from orchestrator.bootstrap import Parts
from orchestrator.domain.batch import BatchSettings
from orchestrator.domain.batch_run import ShardClaim, ShardDone
from orchestrator.domain.prompt_version import Lineage, PromptRef, PromptVersion, TrainedPrompt
from orchestrator.inference.predictor import Predictor
from orchestrator.inference.shard_worker import ShardWorker, WorkerPlan
from orchestrator.settings import read_settings
from tests.tiny import make_tiny_base

WIDTH = 64


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def open_parts(home: Path, **settings: str) -> Parts:
    given = {"TUTTI_HOME": str(home), "TUTTI_WORKER_THREADS": "1"}
    return Parts(read_settings({**given, **settings}, home))


def register(
    parts: Parts, task: str, candidates: tuple[str, ...] | None, seed: int
) -> PromptVersion:
    """A version with random virtual tokens; without `candidates`, its answers are generated."""
    fingerprint = parts.bases.list()[0].fingerprint
    tokens = torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(seed))
    artifact = parts.artifacts.put_bytes(dump_tensors({"prompt_embeddings": tokens}))
    trained = TrainedPrompt(
        task=task,
        config={
            "num_virtual_tokens": 4,
            "token_dim": WIDTH,
            "template": "{prompt:4}{word}: {colour}",
            "answer": "colour",
            "metric": "accuracy" if candidates else "exact_match",
            "candidates": list(candidates) if candidates else None,
            "ends_answer": candidates is None,
            "max_answer_tokens": 5,
        },
        metrics={},
        artifacts={"encoder": artifact, "prompt_embeddings": artifact, "curve": artifact},
        lineage=Lineage("tiny", fingerprint, {}, {}, "s", 0, "0.1.0"),
    )
    version, _ = parts.prompts.register(trained)
    return version


def fill(parts: Parts, base: Path) -> None:
    """Register a base and three prompts on it, each in production."""
    parts.bases.add(parts.base_store.add("tiny", base))
    tasks = {"colour": ("red", "blue"), "mood": ("good", "bad", "odd"), "spelled": None}
    for seed, (task, candidates) in enumerate(tasks.items()):
        register(parts, task, candidates, seed)
        parts.prompts.promote(PromptRef(task, 1), "production", parts.actor)


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def home_template(tmp_path_factory: pytest.TempPathFactory, base_folder: Path) -> Path:
    home = tmp_path_factory.mktemp("home")
    parts = open_parts(home)
    fill(parts, base_folder)
    parts.close()
    return home


@pytest.fixture
def home(tmp_path: Path, home_template: Path) -> Path:
    return Path(shutil.copytree(home_template, tmp_path / "home"))


@pytest.fixture
def parts(home: Path) -> Iterator[Parts]:
    opened = open_parts(home)
    yield opened
    opened.close()


@dataclass
class InlinePool:
    """A worker in this process. `answered` holds the shards it was given; `before` is called with
    each shard's number, and may raise. `loaded` bases are used again."""

    before: Callable[[int], None] = lambda number: None
    answered: list[int] = field(default_factory=list)
    loaded: dict[str, Predictor] = field(default_factory=dict)

    def up(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def answer(self, plan: WorkerPlan, claims: Sequence[ShardClaim]) -> Iterator[ShardDone]:
        worker = ShardWorker(plan)
        worker._answers._predictors = self.loaded
        for claim in claims:
            self.before(claim.number)
            self.answered.append(claim.number)
            yield worker.answer(claim)


def rows_of(num_rows: int) -> list[dict[str, Any]]:
    """Rows of all three tasks, and some that cannot be answered."""
    tasks = itertools.cycle(("colour", "mood", "colour", "spelled", "nobody"))
    return [
        {"task": task, "fields": {"word": f"w{n}", "colour": "red"}, "id": n}
        for n, task in zip(range(num_rows), tasks)  # noqa: B905 (tasks never end)
    ]


def write_rows(path: Path, num_rows: int) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows_of(num_rows)))
    return path


@dataclass(frozen=True)
class Files:
    """An input of 23 rows, in shards of 4."""

    source: Path
    folder: Path

    def request(
        self, output: str = "answers.jsonl", shard_rows: int = 4, **settings: Any
    ) -> BatchRequest:
        given = BatchSettings(**settings)
        return BatchRequest(self.source, self.folder / output, given, None, shard_rows)

    def output(self, name: str = "answers.jsonl") -> dict[str, bytes]:
        """What the run gave, without the manifest, whose times differ."""
        path = self.folder / name
        found = [path] if path.is_file() else sorted(path.iterdir())
        return {file.name: file.read_bytes() for file in found if not file.name.startswith("_")}

    def rows(self, name: str = "answers.jsonl") -> list[dict[str, Any]]:
        return [
            json.loads(line) for data in self.output(name).values() for line in data.splitlines()
        ]


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(write_rows(tmp_path / "in.jsonl", 23), tmp_path)
