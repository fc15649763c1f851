"""Two real ranks (gloo) with passes of their own number, kind and base: all are made by both."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing

from encoders.packed.packed_model import PackedModel
from encoders.packed.packing import PackedRow, pack
from orchestrator.inference.pass_turns import PassTurns
from tests.orchestrator.inference.conftest import Base

ROWS = pack([PackedRow(None, (5, 6, 7)), PackedRow(None, (8, 9))], {})
STATES = pack([PackedRow(None, (3, 4))], {})
#: What each rank runs of the two bases, by their numbers.
PASSES: list[list[tuple[int, Callable[[PackedModel], Any]]]] = [
    [
        (0, lambda model: model.logits(ROWS, {})),
        (1, lambda model: model.hidden(ROWS, {})),
        (0, lambda model: model.states(STATES)),
        (0, lambda model: model.logits(ROWS, {})),
    ],
    [(1, lambda model: model.logits(ROWS, {}))],
]


def run_rank(rank: int, folders: tuple[str, str], out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{out}/meeting", rank=rank, world_size=2)
    models = [PackedModel.load(Path(folder)) for folder in folders]
    seen: list[str] = []
    for number, model in enumerate(models):
        see_modules(model.model, str(number), seen)
    turns = PassTurns(models)
    while rank == 1 and turns.num_passes < 1:  # it comes late
        turns.rest()
    with torch.no_grad():
        for number, run in PASSES[rank]:
            run(models[number])
    deadline = time.monotonic() + 60
    while turns.rest():
        assert time.monotonic() < deadline
    torch.save({"seen": seen, "num_passes": turns.num_passes}, f"{out}/{rank}")
    dist.destroy_process_group()


def see_modules(model: torch.nn.Module, name: str, seen: list[str]) -> None:
    """Note each module that runs: what ZeRO-3 would gather."""
    for path, module in model.named_modules():
        module.register_forward_pre_hook(lambda *_, path=path: seen.append(f"{name}:{path}"))


@pytest.fixture(scope="module")
def ranks(
    bases: tuple[Base, Base], tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Any]]:
    out = tmp_path_factory.mktemp("ranks")
    folders = tuple(str(base.folder) for base in bases)
    torch.multiprocessing.spawn(run_rank, (folders, str(out)), nprocs=2)
    return [torch.load(out / str(rank), weights_only=True) for rank in range(2)]


def test_both_ranks_run_the_same_modules_in_the_same_order(ranks: list[dict[str, Any]]) -> None:
    one, other = (rank["seen"] for rank in ranks)
    assert one == other
    assert {each[0] for each in one} == {"0", "1"}


def test_passes_of_one_base_are_made_at_once(ranks: list[dict[str, Any]]) -> None:
    assert [rank["num_passes"] for rank in ranks] == [4, 4]  # not 5: two of them fell together


def test_every_pass_of_a_base_runs_the_same_modules(ranks: list[dict[str, Any]]) -> None:
    first = "0:model.embed_tokens"
    seen = [each for each in ranks[0]["seen"] if each.startswith("0:")]
    starts = [place for place, each in enumerate(seen) if each == first]
    passes = [seen[a:b] for a, b in zip(starts, [*starts[1:], len(seen)], strict=True)]
    assert len(passes) == 3
    assert passes.count(passes[0]) == 3
