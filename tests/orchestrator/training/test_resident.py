"""A resident rank: a real board, real tasks, and a script that admits and withdraws in between."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from encoders.packed.context_cache import CacheBudget, ContextCache
from encoders.text.tokenization import TextTokenizer
from orchestrator.artifacts.artifact_store import ArtifactStore
from orchestrator.domain.errors import StoreUnavailable
from orchestrator.domain.gang import (
    TaskAdmitted,
    TaskCheckpointed,
    TaskEvent,
    TaskFailed,
    TaskFinished,
    TaskNoted,
    TaskOrder,
    TaskProgress,
    TaskWithdrawn,
)
from orchestrator.domain.job import Fault
from orchestrator.training.board import Board
from orchestrator.training.checkpoint import Checkpointer, load_checkpoint
from orchestrator.training.member import Round
from orchestrator.training.rank_loop import RankLoop
from orchestrator.training.rank_passes import RankPasses
from orchestrator.training.resident import Resident
from orchestrator.training.sharded_base import ShardedBase
from orchestrator.training.task_opening import TaskOpening
from orchestrator.training.task_run import TaskRun
from orchestrator.training.trained_prompt import store_trained_prompt
from tests.orchestrator.training.conftest import MAX_LENGTH, MAX_POSITIONS, make_spec
from tests.tiny import colour_rows, keeps_row_bits

Act = Callable[[Board], None]


class Workplace:
    """What gangs have in common: a store, a base, and orders on the same data."""

    def __init__(self, store: ArtifactStore, tokenizer: TextTokenizer, base: ShardedBase) -> None:
        self.store, self.tokenizer, self.base = store, tokenizer, base
        self.datasets = {"train": self._rows(10, 0), "eval": self._rows(5, 100)}

    def _rows(self, num_rows: int, offset: int) -> str:
        lines = map(json.dumps, colour_rows(num_rows, offset))
        return self.store.put_bytes("\n".join(lines).encode()).digest

    def order(self, job_id: str, epoch: int = 1, **changes: Any) -> TaskOrder:
        training = {"steps": 6, "seed": len(job_id)} | changes.pop("training", {})
        spec = make_spec(job_id, **changes, training=training)
        return TaskOrder(job_id, spec, self.datasets, "f" * 64, 10.0, epoch=epoch)


class Gang:
    """One rank under a board. `script` says what is done before the rank's n-th question (from 0);
    after the last of it, it goes on to the end of all tasks and is stopped. `idle` are the numbers
    of the questions it asked idle."""

    def __init__(
        self,
        place: Workplace,
        script: Mapping[int, Act],
        checkpoint_s: float = 1e9,
        store: ArtifactStore | None = None,
        result_store: ArtifactStore | None = None,
    ) -> None:
        self.board, self._script, self.seconds = Board(60.0, lambda: 0.0), script, 0.0
        self.board.start_group()
        self.board.join("group", 0, 1, "host")
        self.events: list[Any] = []
        self.idle: list[int] = []
        self.num_asked = 0
        opening = TaskOpening(place.store, place.tokenizer, place.base, MAX_LENGTH)
        cache = ContextCache(place.base.model, CacheBudget(1 << 30))
        passes = RankPasses(place.base, cache, MAX_POSITIONS)

        def finish(run: TaskRun) -> None:
            trained = store_trained_prompt(
                run, opening.orders[run.job_id], "code", result_store or place.store
            )
            self.tell([TaskFinished(run.job_id, trained, run.epoch)])

        loop = RankLoop(place.base, passes, (), self.tell, finish, now=lambda: self.seconds)
        keeper = Checkpointer(store or place.store, self.tell, checkpoint_s)
        Resident(loop, self.ask, opening, keeper, self.tell, 0, "worker 0 of 1").run()
        self.events += self.board.take().events

    def tell(self, events: Sequence[TaskEvent]) -> None:
        self.board.post("group", events)

    def ask(self, is_idle: bool, saved: int) -> Round:
        self.seconds += 1
        self.idle += [self.num_asked] if is_idle else []
        self._script.get(self.num_asked, lambda board: None)(self.board)
        if is_idle and self.num_asked > max(self._script, default=0):
            self.board.stop()
        self.num_asked += 1
        told = self.board.sync("group", [0], saved)
        assert told is not None
        self.events += self.board.take().events
        return Round(told[0], told[0].admits)

    def of(self, kind: type, job_id: str) -> list[Any]:
        return [e for e in self.events if isinstance(e, kind) and e.job_id == job_id]

    def checkpoint(self, job_id: str) -> str:
        digest: str = self.of(TaskCheckpointed, job_id)[-1].digest
        return digest


@pytest.fixture
def place(tmp_path: Path, tokenizer: TextTokenizer, base: ShardedBase) -> Workplace:
    return Workplace(ArtifactStore(str(tmp_path)), tokenizer, base)


def admitting(*orders: TaskOrder) -> Act:
    return lambda board: board.admit(orders)


def check_same(place: Workplace, found: Gang, expected: Gang, job_id: str) -> None:
    """The same to the bit where this machine's kernels allow it, to rounding elsewhere."""
    one, other = (gang.of(TaskFinished, job_id)[0].trained.artifacts for gang in (found, expected))
    if keeps_row_bits():
        assert one["encoder"] == other["encoder"]
        assert one["curve"] == other["curve"]
    tokens = [
        safetensors.torch.load(place.store.get_bytes(each["prompt_embeddings"].digest))[
            "prompt_embeddings"
        ]
        for each in (one, other)
    ]
    assert torch.allclose(*tokens, atol=1e-5)


@pytest.mark.parametrize("late", [{}, {"encoder": {"type": "lstm", "hidden_size": 8}}])
def test_who_comes_in_the_middle_changes_nobody_and_learns_what_it_learns_alone(
    place: Workplace, late: dict[str, Any]
) -> None:
    first, second = place.order("first"), place.order("second", **late)
    together = Gang(place, {0: admitting(first), 3: admitting(second)})
    (admitted,) = together.of(TaskAdmitted, "second")
    before = together.events[: together.events.index(admitted)]
    assert [e.step for e in before if isinstance(e, TaskProgress)] == [1, 2, 3]
    for order in (first, second):
        check_same(place, together, Gang(place, {0: admitting(order)}), order.job_id)


def test_who_comes_takes_its_first_step_in_the_same_round(place: Workplace) -> None:
    first, second = place.order("first"), place.order("second")
    gang = Gang(place, {0: admitting(first), 3: admitting(second)})
    steps = [(e.job_id, e.step) for e in gang.events if isinstance(e, TaskProgress)]
    assert steps[3:5] == [("first", 4), ("second", 1)]


@pytest.mark.parametrize("step", [1, 2, 5])
def test_who_leaves_with_a_checkpoint_goes_on_elsewhere_to_the_bit(
    place: Workplace, step: int
) -> None:
    dropout = {"type": "lstm", "hidden_size": 8, "dropout": 0.5}
    order, other = place.order("leaver", encoder=dropout), place.order("stays")
    leaving = {step: lambda board: board.withdraw("leaver", 1, keeps=True)}
    left = Gang(place, {0: admitting(order, other), **leaving})
    assert left.of(TaskWithdrawn, "leaver") == [TaskWithdrawn("leaver", 1, step)]
    assert left.of(TaskFinished, "leaver") == []
    back = replace(order, epoch=2, checkpoint=left.checkpoint("leaver"))
    resumed = Gang(place, {0: admitting(back)})
    assert resumed.of(TaskAdmitted, "leaver") == [TaskAdmitted("leaver", 2, 0, step)]
    check_same(place, resumed, Gang(place, {0: admitting(order)}), "leaver")
    check_same(place, left, Gang(place, {0: admitting(other)}), "stays")


def test_who_leaves_and_comes_back_between_two_steps_is_the_same_to_the_bit(
    place: Workplace,
) -> None:
    order = place.order("job")
    gang: Gang

    def back(board: Board) -> None:
        (kept,) = [e for e in board.take().events if isinstance(e, TaskCheckpointed)]
        board.admit([replace(order, epoch=2, checkpoint=kept.digest)])

    script = {0: admitting(order), 2: lambda board: board.withdraw("job", 1, True), 3: back}
    gang = Gang(place, script)
    assert [e.epoch for e in gang.events if isinstance(e, TaskFinished)] == [2]
    check_same(place, gang, Gang(place, {0: admitting(order)}), "job")


def test_who_leaves_without_a_checkpoint_is_gone(place: Workplace) -> None:
    script = {0: admitting(place.order("job")), 2: lambda board: board.withdraw("job", 1, False)}
    gang = Gang(place, script)
    assert gang.of(TaskCheckpointed, "job") == gang.of(TaskFinished, "job") == []
    assert gang.of(TaskWithdrawn, "job") == [TaskWithdrawn("job", 1, 2)]
    assert gang.num_asked == 4, "idle after its third round without the job, and stopped"


def test_who_cannot_be_opened_fails_alone(place: Workplace) -> None:
    bad = replace(place.order("bad"), datasets={"train": "0" * 64, "eval": "0" * 64})
    good = place.order("good")
    gang = Gang(place, {0: admitting(good), 2: admitting(bad)})
    (failure,) = gang.of(TaskFailed, "bad")
    assert "missing from the store" in failure.reason
    assert gang.of(TaskAdmitted, "bad") == []
    check_same(place, gang, Gang(place, {0: admitting(good)}), "good")


def test_an_idle_rank_takes_up_what_comes(place: Workplace) -> None:
    gang = Gang(place, {4: admitting(place.order("job"))})
    assert gang.idle[:4] == [1, 2, 3, 4]
    assert gang.of(TaskFinished, "job") != []


def test_a_rank_that_is_stopped_keeps_all_it_has(place: Workplace) -> None:
    one, other = place.order("one"), place.order("other")
    gang = Gang(place, {0: admitting(one, other), 3: Board.stop})
    for order in (one, other):
        assert gang.of(TaskWithdrawn, order.job_id) == [TaskWithdrawn(order.job_id, 1, 3)]
        state = load_checkpoint(place.store.get_bytes(gang.checkpoint(order.job_id)))
        assert state["trainer"]["slot"]["num_steps"] == 3
    assert gang.num_asked == 4


def test_a_request_to_save_is_met_once_and_told(place: Workplace) -> None:
    numbers: list[int] = []
    script: dict[int, Act] = {
        0: admitting(place.order("job")),
        2: lambda board: numbers.append(board.ask_save()),
    }
    gang = Gang(place, script)
    assert [e.step for e in gang.of(TaskCheckpointed, "job")] == [2]
    gang.board.beat("group", 0, "training", True)
    assert gang.board.is_saved(numbers[0])


def test_sweeps_come_and_leave_like_any_task(place: Workplace) -> None:
    sweep = {"over": {"training.seed": [1, 2, 3]}, "halving": {"factor": 3, "first": 2}}
    order = place.order("swept", sweep=sweep)
    left = Gang(place, {0: admitting(order), 3: lambda board: board.withdraw("swept", 1, True)})
    back = replace(order, epoch=2, checkpoint=left.checkpoint("swept"))
    resumed = Gang(place, {0: admitting(back)})
    check_same(place, resumed, Gang(place, {0: admitting(order)}), "swept")
    notes = [note.text for note in (*left.of(TaskNoted, "swept"), *resumed.of(TaskNoted, "swept"))]
    assert notes[1].startswith("step 2 of 6: 1 of 3 trials left, best accuracy ")
    assert "goes on after step 3 of 6" in notes[2]
    assert " won with training.seed " in notes[-1]


def test_a_jobs_log_says_what_happened_in_plain_words(place: Workplace) -> None:
    gang = Gang(place, {0: admitting(place.order("job", training={"steps": 4}))})
    lines = [note.text for note in gang.of(TaskNoted, "job")]
    assert lines[0] == "on worker 0 of 1: starts"
    assert lines[1].startswith("step 2 of 4: accuracy ")
    assert lines[2].startswith("step 4 of 4: accuracy ")
    assert lines[3].startswith("trained in ")
    assert len(lines) == 4


class FullStore(ArtifactStore):
    """A store on a disk without room."""

    def put_bytes(self, data: bytes) -> Any:
        raise StoreUnavailable("no space left on device")


def test_a_full_disk_costs_checkpoints_alone(place: Workplace) -> None:
    order = place.order("job", training={"steps": 3})
    gang = Gang(place, {0: admitting(order)}, checkpoint_s=0.0, store=FullStore("nowhere"))
    notes = [note.text for note in gang.of(TaskNoted, "job")]
    assert "no checkpoint after step 1: no space left on device" in notes
    check_same(place, gang, Gang(place, {0: admitting(order)}), "job")


class FullAtTheEnd(ArtifactStore):
    """A store on a disk without room for the first `num_refusals` results."""

    def __init__(self, url: str, num_refusals: int) -> None:
        super().__init__(url)
        self.num_refusals = num_refusals

    def put_bytes(self, data: bytes) -> Any:
        if self.num_refusals:
            self.num_refusals -= 1
            raise StoreUnavailable("no space left on device")
        return super().put_bytes(data)


def test_a_result_that_cannot_be_stored_is_kept_and_its_neighbour_goes_on(place: Workplace) -> None:
    order, other = place.order("job", training={"steps": 2}), place.order("stays")
    late = FullAtTheEnd(place.store.url, 8)
    script: dict[int, Act] = {0: admitting(order, other), 12: lambda board: None}
    gang = Gang(place, script, result_store=late)
    for each in (order, other):
        check_same(place, gang, Gang(place, {0: admitting(each)}), each.job_id)
    ends = [e.job_id for e in gang.events if isinstance(e, TaskFinished)]
    assert sorted(ends) == ["job", "stays"]
    notes = [n.text for n in gang.of(TaskNoted, "job") if "cannot be stored yet" in n.text]
    assert len(notes) == 1
    steps = [e.step for e in gang.of(TaskProgress, "job") if e.stage == "training"]
    assert steps == [1, 2]


def test_who_waits_for_the_store_may_leave_and_ends_elsewhere_the_same(place: Workplace) -> None:
    order = place.order("job", training={"steps": 2})
    leaving: dict[int, Act] = {4: lambda board: board.withdraw("job", 1, keeps=True)}
    left = Gang(
        place, {0: admitting(order), **leaving}, result_store=FullAtTheEnd(place.store.url, 99)
    )
    assert left.of(TaskWithdrawn, "job") == [TaskWithdrawn("job", 1, 2)]
    assert left.of(TaskFinished, "job") == []
    resumed = Gang(place, {0: admitting(replace(order, checkpoint=left.checkpoint("job")))})
    check_same(place, resumed, Gang(place, {0: admitting(order)}), "job")


def test_a_result_that_is_never_stored_ends_as_the_machines_fault(place: Workplace) -> None:
    order = place.order("job", training={"steps": 2})
    script: dict[int, Act] = {0: admitting(order), 40: lambda board: None}
    gang = Gang(place, script, result_store=FullAtTheEnd(place.store.url, 99))
    (failure,) = gang.of(TaskFailed, "job")
    assert failure.fault == Fault.MACHINE
