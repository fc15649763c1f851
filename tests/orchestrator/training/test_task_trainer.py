import math

import pytest
import torch
from torch import Tensor

from encoders.bank.encoder_step import EncoderStep
from orchestrator.domain.task_spec import Metric
from orchestrator.training.evaluation import Score
from orchestrator.training.prompt_module import build_prompt
from orchestrator.training.task_trainer import TaskTrainer
from tests.orchestrator.training.conftest import WIDTH, MakeTrainer
from tests.tiny import colour_rows


def step(trainer: TaskTrainer, scale: float = 1.0, loss: float = 1.0) -> Tensor:
    """One step with the gradient of `scale` times the sum of squares; returns the leaf."""
    trainer.next_rows()
    step = EncoderStep([trainer.slot])
    leaf = step.leaves[0]
    (leaf.square().sum() * scale).backward()
    trainer.check_step(leaf, loss)
    step.finish([trainer.slot])
    trainer.end_step(loss)
    return leaf.detach()


def state(trainer: TaskTrainer) -> dict[str, Tensor]:
    return trainer.slot.weights()


def is_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("encoder", [{"type": "mlp"}, {"type": "lstm"}, {"type": "embedding"}])
def test_the_same_seed_gives_the_same_weights_after_steps(
    make_trainer: MakeTrainer, encoder: dict[str, object]
) -> None:
    one, other = make_trainer(encoder=encoder), make_trainer(encoder=encoder)
    for _ in range(3):
        step(one)
        torch.rand(7)
        step(other)
    assert is_same(state(one), state(other))


def test_the_gradient_goes_through_the_encoder_as_in_one_backward_pass(
    make_trainer: MakeTrainer,
) -> None:
    trainer = make_trainer(training={"optimizer": "sgd", "max_grad_norm": None})
    twin = build_prompt(trainer.spec.encoder, 4, WIDTH, seed=1)
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.01)
    twin.virtual_tokens().square().sum().backward()
    optimizer.step()
    step(trainer)
    ours = state(trainer)
    for name, other in twin.state_dict().items():
        assert torch.allclose(ours[name], other, atol=1e-7)


def test_gradients_are_clipped_to_the_norm(make_trainer: MakeTrainer) -> None:
    training = {"optimizer": "sgd", "learning_rate": 1.0, "max_grad_norm": 0.5, "steps": 9}
    trainer = make_trainer(training={**training, "schedule": "constant"})
    before = state(trainer)
    step(trainer, scale=1e6)
    after = state(trainer)
    moved = torch.cat([(after[name] - before[name]).flatten() for name in before])
    assert float(moved.norm()) == pytest.approx(0.5, rel=1e-3)


def test_weight_decay_is_the_optimizers(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(
        encoder={"type": "embedding"},
        training={"weight_decay": 0.5, "schedule": "constant", "learning_rate": 0.1},
    )
    before = trainer.virtual_tokens().clone()
    step(trainer, scale=0.0)
    assert torch.allclose(trainer.virtual_tokens(), before * (1 - 0.1 * 0.5))


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
@pytest.mark.parametrize(("steps", "warmup"), [(10, 0), (10, 3), (5, 5), (4, 9), (1, 0)])
def test_schedules_are_those_of_transformers(
    make_trainer: MakeTrainer, schedule: str, steps: int, warmup: int
) -> None:
    from transformers import get_scheduler

    training = {"schedule": schedule, "steps": steps, "warmup_steps": warmup}
    trainer = make_trainer(encoder={"type": "embedding"}, training=training)
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))], lr=0.01)
    kind = "constant_with_warmup" if schedule == "constant" else schedule
    theirs = get_scheduler(kind, optimizer, num_warmup_steps=warmup, num_training_steps=steps)
    expected = []
    for _ in range(steps):
        step(trainer)
        expected.append(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()
    assert [rate for _, rate in trainer.curve["learning_rate"]] == pytest.approx(expected)
    assert trainer.is_done


def test_every_row_is_seen_once_an_epoch_in_a_seeded_order(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(training={"steps": 6, "batch_size": 4})
    batches = []
    for _ in range(6):
        batches.append([row.context for row in trainer.next_rows()])
    assert [len(batch) for batch in batches] == [4, 4, 2, 4, 4, 2]
    everything = sorted(example.context for example in trainer.data.splits["train"])
    epochs = [[c for batch in batches[i : i + 3] for c in batch] for i in (0, 3)]
    assert [sorted(epoch) for epoch in epochs] == [everything, everything]
    assert epochs[0] != epochs[1]


def test_another_seed_is_another_order(make_trainer: MakeTrainer) -> None:
    first, second = (
        make_trainer(train=colour_rows(40), training={"seed": seed}).next_rows() for seed in (1, 2)
    )
    assert [row.context for row in first] != [row.context for row in second]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_is_refused_and_changes_nothing(
    make_trainer: MakeTrainer, value: float
) -> None:
    trainer = make_trainer()
    step(trainer)
    before = state(trainer)
    with pytest.raises(
        ValueError, match=r"not a finite number at step 2 \(loss (nan|inf)\); lower"
    ):
        step(trainer, loss=value)
    with pytest.raises(ValueError, match="not a finite number"):
        step(trainer, scale=value)
    assert is_same(state(trainer), before)
    assert trainer.step == 1


def test_an_evaluation_is_due_every_so_often_and_at_the_end(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(training={"steps": 7}, evaluation={"every": 3})
    due = [trainer.is_evaluation_due]
    for _ in range(7):
        step(trainer)
        due.append(trainer.is_evaluation_due)
    assert [index for index, is_due in enumerate(due) if is_due] == [3, 6, 7]


def test_the_best_step_is_restored(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(training={"steps": 10})
    kept = {}
    for accuracy in (0.2, 0.8, 0.5):
        step(trainer)
        trainer.take_score(Score("accuracy", accuracy, 1.0))
        kept[accuracy] = state(trainer)
    trainer.restore_best()
    assert is_same(state(trainer), kept[0.8])
    assert (trainer.best_step, trainer.best) == (2, Score("accuracy", 0.8, 1.0))


def test_of_equal_scores_the_lower_loss_is_best_then_the_first(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer()
    for loss in (1.0, 0.5, 0.5):
        step(trainer)
        trainer.take_score(Score("accuracy", 0.5, loss))
    assert trainer.best_step == 2


def test_a_score_that_is_no_number_is_never_the_best(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer()
    step(trainer)
    trainer.take_score(Score("loss", math.nan, math.nan))
    assert trainer.best is None
    before = state(trainer)
    trainer.restore_best()
    assert is_same(state(trainer), before)


def test_patience_ends_a_training_that_does_not_improve(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(training={"steps": 100, "early_stop": {"patience": 2}})
    done = []
    for accuracy in (0.5, 0.4, 0.6, 0.6, 0.5):
        step(trainer)
        trainer.take_score(Score("accuracy", accuracy, 1.0))
        done.append(trainer.is_done)
    assert done == [False, False, False, False, True]
    assert trainer.best_step == 3


@pytest.mark.parametrize(
    ("metric", "values", "target"),
    [("accuracy", (0.5, 0.89, 0.9), 0.9), ("loss", (2.0, 0.31, 0.3), 0.3)],
)
def test_a_training_ends_when_the_metric_reaches_its_target(
    make_trainer: MakeTrainer, metric: Metric, values: tuple[float, ...], target: float
) -> None:
    training = {"steps": 100, "early_stop": {"target": target}}
    trainer = make_trainer(training=training, evaluation={"metric": metric})
    done = []
    for value in values:
        step(trainer)
        trainer.take_score(Score(metric, value, value))
        done.append(trainer.is_done)
    assert done == [False, False, True]


def test_patience_and_target_each_end_a_training(make_trainer: MakeTrainer) -> None:
    training = {"steps": 100, "early_stop": {"patience": 1, "target": 0.9}}
    ends = []
    for scores in ((0.5, 0.4), (0.5, 0.95), (0.5, 0.6)):
        trainer = make_trainer(training=training)
        for value in scores:
            step(trainer)
            trainer.take_score(Score("accuracy", value, 1.0))
        ends.append(trainer.is_done)
    assert ends == [True, True, False]


def test_curves_have_a_point_a_step_and_a_point_a_score(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer()
    for loss in (3.0, 2.0):
        step(trainer, loss=loss)
    trainer.take_score(Score("accuracy", 0.5, 1.5))
    assert trainer.curve["loss"] == [(1, 3.0), (2, 2.0)]
    assert trainer.curve["eval_accuracy"] == [(2, 0.5)]
    assert trainer.curve["eval_loss"] == [(2, 1.5)]


def test_a_loss_metric_has_one_curve(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(evaluation={"metric": "loss"})
    step(trainer)
    trainer.take_score(Score("loss", 1.5, 1.5))
    assert trainer.curve["eval_loss"] == [(1, 1.5)]


def test_dropout_is_drawn_from_the_tasks_own_seed(make_trainer: MakeTrainer) -> None:
    encoder = {"type": "lstm", "hidden_size": 8, "dropout": 0.5}
    one, other = make_trainer(encoder=encoder), make_trainer(encoder=encoder)
    leaves = []
    for trainer in (one, other):
        torch.rand(5)
        leaves.append([step(trainer, scale=0.0) for _ in range(2)])
    assert torch.equal(leaves[0][0], leaves[1][0])
    assert torch.equal(leaves[0][1], leaves[1][1])
    assert not torch.equal(one.virtual_tokens(), EncoderStep([one.slot]).leaves[0])
    assert torch.equal(one.virtual_tokens(), one.virtual_tokens())


def test_virtual_tokens_have_the_bases_width_and_no_gradient(make_trainer: MakeTrainer) -> None:
    tokens = make_trainer().virtual_tokens()
    assert tokens.shape == (4, WIDTH)
    assert not tokens.requires_grad
