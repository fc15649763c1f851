"""Two real ranks (gloo, ZeRO-3) that hold three bases together, one of which runs padded: each
answers its own shards, more or fewer, in every mode, as a worker does that holds them whole."""

import itertools
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing

from encoders.text.tokenization import TextTokenizer
from orchestrator.artifacts.artifact_store import ArtifactStore
from orchestrator.batch_data.batch_row import BatchRow
from orchestrator.batch_data.output_row import OutputRow
from orchestrator.domain.batch import BatchMode, BatchSettings, Decoding
from orchestrator.domain.prompt_version import PromptRef
from orchestrator.inference.pass_turns import PassTurns
from orchestrator.inference.row_answers import AnswerPlan, RowAnswers, ServedBase
from orchestrator.sharding.load_sharded import load_sharded
from tests.orchestrator.inference.conftest import MAX_LENGTH, Base, MakeVersion
from tests.tiny import make_unpackable_base

MODES = {
    "auto": BatchSettings(),
    "calibrated": BatchSettings(BatchMode.CLASSIFY, calibrate=True),
    "sampled": BatchSettings(BatchMode.GENERATE, decoding=Decoding(do_sample=True, seed=3)),
    "beams": BatchSettings(BatchMode.GENERATE, decoding=Decoding(num_beams=3)),
    "score": BatchSettings(BatchMode.SCORE),
    "embed": BatchSettings(BatchMode.EMBED),
}
TASKS = ("colour", "mood", "spelled", "other", "padded", "colour", "nobody")
#: Each rank's shards, by their rows: uneven, and for each mode.
SHARDS = (((0, 9), (9, 11), (11, 25)), ((25, 28),))


def rows(first: int, last: int) -> list[BatchRow]:
    return [
        BatchRow(
            n, n, None, None, PromptRef(task, "production"), {"word": f"w{n % 5}" * (n % 3 + 1)}
        )
        for n, task in itertools.islice(enumerate(itertools.cycle(TASKS)), first, last)
    ]


def answer(answers: RowAnswers, shards: Sequence[tuple[int, int]]) -> list[OutputRow]:
    return [row.output for shard in shards for row in answers.answer(rows(*shard))]


def run_rank(rank: int, plan: AnswerPlan, out: str) -> None:
    """What a rank does; its answers go to a file."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}  # asked for, never used
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    dist.init_process_group("gloo", f"file://{out}/meeting", rank=rank, world_size=2)
    folders = [base.folder for _, base in sorted(plan.bases.items())]
    models = {each: load_sharded(each, TextTokenizer.load(each), 3) for each in folders}
    turns = PassTurns(list(models.values()))
    found: dict[str, Any] = {}
    for mode, settings in MODES.items():
        answers = RowAnswers(replace(plan, settings=settings), models.__getitem__)
        found[mode] = [each.to_json() for each in answer(answers, SHARDS[rank])]
    while turns.rest():
        pass
    found["share"] = [
        sum(parameter.ds_tensor.numel() for parameter in model.model.parameters())
        / sum(parameter.ds_numel for parameter in model.model.parameters())
        for model in models.values()
    ]
    torch.save(found, f"{out}/{rank}")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def plan(
    make_version: MakeVersion,
    bases: tuple[Base, Base],
    store: ArtifactStore,
    tmp_path_factory: pytest.TempPathFactory,
) -> AnswerPlan:
    unpackable = Base("c" * 64, make_unpackable_base(tmp_path_factory.mktemp("bloom")))
    versions = {
        "colour@production": make_version("colour"),
        "mood@production": make_version("mood", candidates=("good", "bad", "odd")),
        "spelled@production": make_version("spelled", candidates=None),
        "other@production": make_version("other", base=bases[1], candidates=("x", "yy")),
        "padded@production": make_version("padded", base=unpackable),
    }
    served = {b.fingerprint: ServedBase(b.folder, MAX_LENGTH) for b in (*bases, unpackable)}
    unresolved = {"nobody@production": "there is no task 'nobody'"}
    return AnswerPlan(BatchSettings(), versions, unresolved, served, store.url, num_threads=1)


@pytest.fixture(scope="module")
def ranks(plan: AnswerPlan, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    out = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(run_rank, (plan, str(out)), nprocs=2)
    return [torch.load(out / str(rank), weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("mode", MODES)
def test_split_bases_answer_what_whole_ones_do(
    ranks: list[dict[str, Any]], plan: AnswerPlan, mode: str
) -> None:
    whole = RowAnswers(replace(plan, settings=MODES[mode]))
    expected = [each.to_json() for shards in SHARDS for each in answer(whole, shards)]
    found = [each for rank in ranks for each in rank[mode]]
    assert [each["row"] for each in found] == list(range(28))
    counted = ("score", "scores", "embedding")
    for row, other in zip(found, expected, strict=True):
        assert row.keys() == other.keys()
        for name, value in other.items():
            is_counted = name in counted
            assert row[name] == (pytest.approx(value, abs=1e-5) if is_counted else value), name


def test_each_rank_holds_half_of_each_base(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert rank["share"] == pytest.approx([0.5] * 3, abs=0.02)
