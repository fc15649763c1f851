"""A rank on its own, in this process, that cannot start: its answers and its pulse say why."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch.distributed as dist

from orchestrator.artifacts.artifact_store import ArtifactStore
from orchestrator.batch_data.batch_input import Input
from orchestrator.batch_data.part_file import OutputFormat
from orchestrator.domain.batch import BatchSettings
from orchestrator.domain.batch_run import ShardClaim
from orchestrator.domain.errors import TuttiError
from orchestrator.inference.row_answers import AnswerPlan, ServedBase
from orchestrator.inference.shard_worker import SplitPlan, WorkerPlan
from orchestrator.inference.split_worker import SplitWorker
from tests.orchestrator.inference.conftest import MAX_LENGTH, Base

SPLIT = SplitPlan(1, 1, start_timeout_s=60, silence_s=60)


@pytest.fixture(autouse=True)
def own_group() -> Iterator[None]:
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)
    if dist.is_initialized():
        dist.destroy_process_group()


def start(base: Path, store: ArtifactStore, split: SplitPlan = SPLIT) -> SplitWorker:
    served = {"a" * 64: ServedBase(base, MAX_LENGTH)}
    answers = AnswerPlan(BatchSettings(), {}, {}, served, store.url, num_threads=1)
    source = Input("in.jsonl", 1, (), ())
    worker = SplitWorker(WorkerPlan(source, answers, "parts", OutputFormat.JSONL, split), 0, 1)
    worker.join(worker.listen("here", "127.0.0.1"), 0)
    return worker


def test_what_would_come_again_is_told_as_an_error_for_people(
    bases: tuple[Base, Base], store: ArtifactStore
) -> None:
    worker = start(bases[0].folder, store, replace(SPLIT, offload="nvme"))
    with pytest.raises(TuttiError, match="offload to NVMe needs a folder"):
        worker.answer(ShardClaim(0, 1))
    with pytest.raises(TuttiError, match="offload to NVMe needs a folder"):
        worker.pulse()


def test_what_may_go_away_is_told_as_it_is(tmp_path: Path, store: ArtifactStore) -> None:
    worker = start(tmp_path / "lost", store)
    for _ in range(2):  # while it starts, and after its end
        with pytest.raises(OSError, match="lost"):
            worker.answer(ShardClaim(0, 1))
    with pytest.raises(OSError, match="lost"):
        worker.pulse()
