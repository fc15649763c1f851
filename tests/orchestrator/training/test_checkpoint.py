"""A training that stops and goes on from its checkpoint, against one that never stopped."""

from pathlib import Path
from typing import Any

import pytest
import torch

from encoders.errors import WeightsError
from orchestrator.artifacts.artifact_store import ArtifactStore
from orchestrator.domain.gang import TaskCheckpointed, TaskEvent
from orchestrator.training.checkpoint import Checkpointer, dump_checkpoint, load_checkpoint
from orchestrator.training.sharded_base import ShardedBase
from orchestrator.training.task_run import TaskRun
from tests.orchestrator.training.conftest import Loop, MakeTrainer
from tests.tiny import keeps_row_bits

LONG = {"steps": 9, "batch_size": 4, "warmup_steps": 2, "schedule": "cosine"}
EVALUATION = {"every": 2, "manual_prompt": "the colour of {word} is {colour}"}
TASKS: dict[str, dict[str, Any]] = {
    "mlp": {},
    "dropout": {"encoder": {"type": "lstm", "hidden_size": 8, "dropout": 0.5}},
    "sgd": {"training": {"optimizer": "sgd", "batch_size": 7}},
    "prefix": {"template": "{prompt:4}{word}: {colour}", "encoder": {"type": "embedding"}},
    "stops-early": {"training": {"early_stop": {"patience": 2}, "learning_rate": 1e-12}},
}


def make_run(make_trainer: MakeTrainer, task: str) -> TaskRun:
    changes = TASKS[task]
    training = LONG | changes.get("training", {})
    trainer = make_trainer(task, **{**changes, "training": training, "evaluation": EVALUATION})
    return TaskRun(f"job-{task}", trainer)


def stopped_after(base: ShardedBase, run: TaskRun, step: int) -> bytes:
    """The checkpoint of a run that is stopped after `step`."""
    Loop(base, [run], is_stopping=lambda: run.trainer.step >= step)
    assert run.trainer.step == step
    return dump_checkpoint(run.state())


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("step", [1, 2, 5])
def test_a_resumed_task_ends_as_an_undisturbed_one_to_the_bit(
    base: ShardedBase, make_trainer: MakeTrainer, task: str, step: int
) -> None:
    undisturbed = make_run(make_trainer, task)
    Loop(base, [undisturbed])
    data = stopped_after(base, make_run(make_trainer, task), step)
    resumed = make_run(make_trainer, task)
    resumed.restore(load_checkpoint(data))
    assert resumed.trainer.step == step
    Loop(base, [resumed])
    check_equal(resumed, undisturbed)


def check_equal(found: TaskRun, expected: TaskRun) -> None:
    """The same to the bit where this machine's kernels allow it, to rounding elsewhere."""
    one, other = found.trainer, expected.trainer
    assert (one.step, one.best_step) == (other.step, other.best_step)
    assert found.manual == expected.manual
    if keeps_row_bits():
        assert one.curve == other.curve
        assert found.held_out == expected.held_out
        for name, weight in one.slot.weights().items():
            assert torch.equal(weight, other.slot.weights()[name]), name
    for name, points in one.curve.items():
        assert [step for step, _ in points] == [step for step, _ in other.curve[name]]
    assert torch.allclose(one.virtual_tokens(), other.virtual_tokens(), atol=1e-4)


def test_neither_neighbours_nor_their_number_change_a_resumed_task(
    base: ShardedBase, make_trainer: MakeTrainer
) -> None:
    undisturbed = make_run(make_trainer, "dropout")
    Loop(base, [undisturbed])
    first = make_run(make_trainer, "dropout")
    neighbours = [make_run(make_trainer, "mlp"), make_run(make_trainer, "sgd")]
    Loop(base, [first, *neighbours], is_stopping=lambda: first.trainer.step >= 3)
    resumed = make_run(make_trainer, "dropout")
    resumed.restore(load_checkpoint(dump_checkpoint(first.state())))
    Loop(base, [make_run(make_trainer, "prefix"), resumed])
    check_equal(resumed, undisturbed)


def test_a_checkpoint_comes_back_as_it_was(base: ShardedBase, make_trainer: MakeTrainer) -> None:
    data = stopped_after(base, make_run(make_trainer, "mlp"), 5)
    again = make_run(make_trainer, "mlp")
    again.restore(load_checkpoint(data))
    state = again.state()
    assert state["seconds"] > load_checkpoint(data)["seconds"]
    state["seconds"] = load_checkpoint(data)["seconds"]
    assert dump_checkpoint(state) == data


def test_the_time_before_a_checkpoint_counts(make_trainer: MakeTrainer) -> None:
    run = make_run(make_trainer, "mlp")
    run.restore({**run.state(), "seconds": 1000.0})
    assert 1000 <= run.seconds < 1100


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],
        lambda data: data[:40],
        lambda data: b"",
        lambda data: b"\x80\x04K\x01." + data,
        lambda data: data.replace(b"data_order", b"date_order"),
    ],
)
def test_a_damaged_checkpoint_is_refused(
    base: ShardedBase, make_trainer: MakeTrainer, damage: Any
) -> None:
    run = make_run(make_trainer, "mlp")
    data = damage(dump_checkpoint(run.state()))
    with pytest.raises((WeightsError, LookupError)):
        run.restore(load_checkpoint(data))


def test_another_jobs_checkpoint_is_refused(make_trainer: MakeTrainer) -> None:
    state = make_run(make_trainer, "mlp").state()
    with pytest.raises(ValueError, match="of job job-mlp, not job-sgd"):
        make_run(make_trainer, "sgd").restore(state)


def test_checkpoints_are_stored_and_told_when_it_is_time(
    base: ShardedBase, make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    store, events, clock = ArtifactStore(str(tmp_path)), list[TaskEvent](), [0.0]

    def tick() -> float:
        clock[0] += 1.0
        return clock[0]

    keep = Checkpointer(store, events.extend, 3.5, tick).keep
    runs = [make_run(make_trainer, task) for task in ("mlp", "sgd")]
    Loop(base, runs, keep=keep)
    told = [event for event in events if isinstance(event, TaskCheckpointed)]
    assert [event.job_id for event in told[:2]] == ["job-mlp", "job-sgd"]
    assert 2 <= len(told) < 18
    for event in told:
        state = load_checkpoint(store.get_bytes(event.digest))
        assert (state["job"], state["trainer"]["slot"]["num_steps"]) == (event.job_id, event.step)


def test_a_task_that_leaves_is_stored_at_once_under_its_epoch(
    make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    store, events = ArtifactStore(str(tmp_path)), list[TaskEvent]()
    runs = [make_run(make_trainer, task) for task in ("mlp", "sgd")]
    runs[0].epoch = 3
    keeper = Checkpointer(store, events.extend, 1e9, keeps=lambda job_id: job_id != "job-sgd")
    keeper.keep(runs)
    assert events == []
    keeper.keep_now(runs)
    (told,) = events
    assert isinstance(told, TaskCheckpointed)
    assert (told.job_id, told.step, told.epoch) == ("job-mlp", 0, 3)
    assert store.exists(told.digest)
