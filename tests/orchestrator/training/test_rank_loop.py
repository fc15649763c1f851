"""Tasks trained together by one rank, against each trained alone."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from orchestrator.domain.gang import TaskFailed, TaskProgress
from orchestrator.training.sharded_base import ShardedBase
from orchestrator.training.task_trainer import TaskTrainer
from tests.orchestrator.training.conftest import MAX_POSITIONS, Loop, MakeTrainer
from tests.tiny import colour_rows, keeps_row_bits

#: Prompts first, last and in the middle, all encoders, other lengths, seeds and step counts.
TASKS: dict[str, dict[str, Any]] = {
    "infix": {},
    "prefix": {"template": "{prompt:4}{word}: {colour}", "training": {"seed": 2, "steps": 5}},
    "lstm": {"encoder": {"type": "lstm", "hidden_size": 8}, "training": {"batch_size": 7}},
    "table": {"encoder": {"type": "embedding"}, "template": "{prompt:2}{word}{prompt:3} {colour}"},
}


def largest(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


def disturbed(trainer: TaskTrainer, at_step: int, value: float) -> TaskTrainer:
    """The same trainer, but all its weights turn to `value` right before a step."""
    next_rows = trainer.next_rows

    def disturbed_rows() -> Any:
        if trainer.step + 1 == at_step:
            weights = trainer.slot.weights()
            trainer.slot.load_weights({k: torch.full_like(v, value) for k, v in weights.items()})
        return next_rows()

    trainer.next_rows = disturbed_rows  # type: ignore[method-assign]
    return trainer


def broken(make_trainer: MakeTrainer, at_step: int) -> TaskTrainer:
    """A trainer whose loss is NaN at a step."""
    return disturbed(make_trainer("broken", encoder={"type": "embedding"}), at_step, math.nan)


@pytest.fixture(scope="module")
def alone(base: ShardedBase, make_trainer: MakeTrainer) -> dict[str, TaskTrainer]:
    """Each task trained by itself."""
    trainers = {task: make_trainer(task, **changes) for task, changes in TASKS.items()}
    for trainer in trainers.values():
        Loop(base, [trainer])
    return trainers


@pytest.mark.parametrize("max_positions", [MAX_POSITIONS, 64])
def test_a_task_among_neighbours_learns_what_it_learns_alone(
    base: ShardedBase,
    make_trainer: MakeTrainer,
    alone: dict[str, TaskTrainer],
    max_positions: int,
) -> None:
    trainers = {task: make_trainer(task, **changes) for task, changes in TASKS.items()}
    loop = Loop(base, list(trainers.values()), max_positions)
    assert {run.name for run in loop.finished} == set(TASKS)
    for task, trainer in trainers.items():
        found, expected = trainer.virtual_tokens(), alone[task].virtual_tokens()
        if max_positions == MAX_POSITIONS and keeps_row_bits():
            assert torch.equal(found, expected), task
            assert trainer.curve == alone[task].curve
        assert largest(found, expected) < 1e-5, task


@pytest.mark.parametrize("task", TASKS)
def test_texts_computed_once_give_what_texts_computed_every_step_give(
    base: ShardedBase, make_trainer: MakeTrainer, alone: dict[str, TaskTrainer], task: str
) -> None:
    trainer = make_trainer(task, **TASKS[task])
    whole = Loop(base, [trainer], cache_bytes=0)
    assert len(whole.cache) == 0
    assert largest(trainer.virtual_tokens(), alone[task].virtual_tokens()) < 1e-4
    assert trainer.best is not None
    assert alone[task].best is not None
    assert trainer.best.loss == pytest.approx(alone[task].best.loss, abs=1e-5)


def test_each_distinct_text_of_all_tasks_is_computed_once(
    base: ShardedBase, make_trainer: MakeTrainer
) -> None:
    tasks = {task: make_trainer(task, training={"steps": 10}) for task in ("one", "two")}
    loop = Loop(base, list(tasks.values()))
    splits = tasks["one"].data.splits
    assert len(loop.cache) == len({row.context for rows in splits.values() for row in rows})
    assert not loop.cache.is_full


def test_training_twice_gives_the_same_bits(base: ShardedBase, make_trainer: MakeTrainer) -> None:
    twice = []
    for _ in range(2):
        trainers = [make_trainer(task, **changes) for task, changes in TASKS.items()]
        Loop(base, trainers)
        twice.append([trainer.virtual_tokens() for trainer in trainers])
    assert all(torch.equal(*pair) for pair in zip(*twice, strict=True))


def test_training_lowers_the_loss(base: ShardedBase, make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(training={"steps": 20, "learning_rate": 0.02}, evaluation={"every": 20})
    Loop(base, [trainer])
    losses = [loss for _, loss in trainer.curve["loss"]]
    assert sum(losses[-3:]) < sum(losses[:3]) - 0.5


@pytest.mark.parametrize("max_positions", [1, 30, 100])
def test_small_packs_give_the_same_gradient(
    base: ShardedBase, make_trainer: MakeTrainer, max_positions: int
) -> None:
    def after_one_step(limit: int) -> tuple[list[Tensor], float]:
        training = {"steps": 1, "optimizer": "sgd", "max_grad_norm": None}
        trainers = [make_trainer(task, training=training) for task in ("one", "two")]
        Loop(base, trainers, limit)
        tokens = [trainer.virtual_tokens() for trainer in trainers]
        return tokens, trainers[0].curve["loss"][0][1]

    expected, expected_loss = after_one_step(1024)
    found, loss = after_one_step(max_positions)
    assert loss == pytest.approx(expected_loss, abs=1e-5)
    for one, other in zip(found, expected, strict=True):
        assert largest(one, other) < 1e-6


@pytest.mark.parametrize("at_step", [1, 3])
def test_a_task_that_turns_to_nan_fails_alone(
    base: ShardedBase, make_trainer: MakeTrainer, at_step: int
) -> None:
    undisturbed = [make_trainer("healthy"), make_trainer("broken", encoder={"type": "embedding"})]
    Loop(base, undisturbed)
    healthy = make_trainer("healthy")
    loop = Loop(base, [healthy, broken(make_trainer, at_step)])
    (failure,) = loop.events_of(TaskFailed)
    assert failure.job_id == "job-broken"
    assert f"not a finite number at step {at_step} (loss nan)" in failure.reason
    assert [run.name for run in loop.finished] == ["healthy"]
    assert largest(healthy.virtual_tokens(), undisturbed[0].virtual_tokens()) < 1e-6


def test_a_task_that_fails_at_the_last_step_leaves_its_neighbours_bit_for_bit(
    base: ShardedBase, make_trainer: MakeTrainer
) -> None:
    undisturbed = [make_trainer("healthy"), make_trainer("broken", encoder={"type": "embedding"})]
    Loop(base, undisturbed)
    healthy = make_trainer("healthy")
    Loop(base, [healthy, broken(make_trainer, at_step=4)])
    assert torch.equal(healthy.virtual_tokens(), undisturbed[0].virtual_tokens())


def test_when_all_tasks_fail_the_loop_ends(base: ShardedBase, make_trainer: MakeTrainer) -> None:
    loop = Loop(base, [broken(make_trainer, at_step=2)])
    assert loop.finished == []
    assert len(loop.events_of(TaskFailed)) == 1


def test_no_tasks_are_nothing_to_do(base: ShardedBase) -> None:
    assert Loop(base, []).events == []


def test_the_best_step_is_what_is_handed_over(base: ShardedBase, make_trainer: MakeTrainer) -> None:
    training = {"steps": 6, "schedule": "constant"}
    evaluation = {"every": 1, "metric": "loss"}
    trainer = make_trainer(training=training, evaluation=evaluation)
    (run,) = Loop(base, [disturbed(trainer, at_step=4, value=9.0)]).finished
    scores = dict(trainer.curve["eval_loss"])
    assert trainer.best_step == min(scores, key=scores.__getitem__) == 3
    assert run.held_out is not None
    assert run.held_out.value == scores[3]
    again = make_trainer(training={**training, "steps": 3}, evaluation=evaluation)
    Loop(base, [again])
    assert largest(trainer.virtual_tokens(), again.virtual_tokens()) < 1e-6


def test_early_stop_ends_a_task_while_its_neighbour_goes_on(
    base: ShardedBase, make_trainer: MakeTrainer
) -> None:
    flat = {"steps": 50, "learning_rate": 1e-12, "early_stop": {"patience": 1}}
    impatient = make_trainer("impatient", training=flat, evaluation={"every": 1})
    neighbour = make_trainer("neighbour", training={"steps": 9})
    loop = Loop(base, [impatient, neighbour])
    assert impatient.step < 9
    assert neighbour.step == 9
    assert [run.name for run in loop.finished] == ["impatient", "neighbour"]


def test_test_rows_are_scored_once_with_the_best_step(
    base: ShardedBase, make_trainer: MakeTrainer
) -> None:
    same = colour_rows(6, offset=300)
    trainer = make_trainer(eval=same, test=same)
    other = make_trainer("other", eval=same)
    runs = Loop(base, [trainer, other]).finished
    assert runs[0].held_out is not None
    assert trainer.best is not None
    assert runs[0].held_out.value == trainer.best.value
    assert runs[0].held_out.loss == pytest.approx(trainer.best.loss, abs=1e-5)
    assert runs[1].held_out is other.best


def test_manual_prompts_are_scored_with_the_first_evaluation(
    base: ShardedBase, make_trainer: MakeTrainer
) -> None:
    manual = {"manual_prompt": "the colour of {word} is {colour}"}
    with_manual = make_trainer("with", evaluation=manual)
    loop = Loop(base, [with_manual, make_trainer("without")])
    assert loop.runs[0].manual is not None
    assert 0 <= loop.runs[0].manual.value <= 1
    assert loop.runs[1].manual is None


@pytest.mark.parametrize("metric", ["accuracy", "exact_match", "loss"])
def test_every_metric_is_measured(
    base: ShardedBase, make_trainer: MakeTrainer, metric: str
) -> None:
    trainer = make_trainer(evaluation={"metric": metric})
    Loop(base, [trainer])
    assert [step for step, _ in trainer.curve[f"eval_{metric}"]] == [2, 4]
    assert trainer.best is not None


def test_progress_is_told_every_step(base: ShardedBase, make_trainer: MakeTrainer) -> None:
    loop = Loop(base, [make_trainer()])
    told = [event.step for event in loop.events_of(TaskProgress) if event.stage == "training"]
    assert sorted(set(told)) == [1, 2, 3, 4]
    assert loop.events_of(TaskProgress)[-1].best is not None


def test_a_loop_that_is_stopped_leaves_at_a_step(
    base: ShardedBase, make_trainer: MakeTrainer
) -> None:
    trainer = make_trainer(training={"steps": 100})
    loop = Loop(base, [trainer], is_stopping=lambda: trainer.step >= 3)
    assert trainer.step == 3
    assert loop.finished == []


def test_the_base_is_not_changed_by_training(base: ShardedBase, make_trainer: MakeTrainer) -> None:
    before = {name: value.clone() for name, value in base.model.model.state_dict().items()}
    Loop(base, [make_trainer()])
    assert all(torch.equal(v, before[name]) for name, v in base.model.model.state_dict().items())
    assert all(parameter.grad is None for parameter in base.model.model.parameters())
