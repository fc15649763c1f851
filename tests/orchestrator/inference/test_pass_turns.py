"""Two ranks with passes of their own number, kind and base: all are made by both. They are threads
here; test_split_answers.py has processes (gloo)."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

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


class Meeting:
    """Where two threads agree."""

    def __init__(self) -> None:
        self._barrier, self._said = threading.Barrier(2, timeout=60), [0, 0]

    def greatest(self, rank: int, number: int) -> int:
        self._said[rank] = number
        self._barrier.wait()
        found = max(self._said)
        self._barrier.wait()
        return found


def run_rank(rank: int, folders: Sequence[Path], meeting: Meeting) -> dict[str, Any]:
    models = [PackedModel.load(folder) for folder in folders]
    seen: list[str] = []
    for number, model in enumerate(models):
        see_modules(model.model, str(number), seen)
    turns = PassTurns(models, partial(meeting.greatest, rank))
    while rank == 1 and turns.num_passes < 1:  # it comes late
        turns.rest()
    with torch.no_grad():
        for number, run in PASSES[rank]:
            run(models[number])
    while turns.rest():
        pass
    return {"seen": seen, "num_passes": turns.num_passes}


def see_modules(model: torch.nn.Module, name: str, seen: list[str]) -> None:
    """Note each module that runs: what ZeRO-3 would gather."""
    for path, module in model.named_modules():
        module.register_forward_pre_hook(lambda *_, path=path: seen.append(f"{name}:{path}"))


@pytest.fixture(scope="module")
def ranks(bases: tuple[Base, Base]) -> list[dict[str, Any]]:
    folders, meeting = [base.folder for base in bases], Meeting()
    with ThreadPoolExecutor(2) as threads:
        begun = [threads.submit(run_rank, rank, folders, meeting) for rank in range(2)]
        return [each.result() for each in begun]


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
