"""A sweep's trials in the real loop, each against the same spec trained alone."""

import json
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from encoders.bank.encoder_bank import EncoderBank
from encoders.packed.packing import PackedBatch
from encoders.text.tokenization import TextTokenizer
from orchestrator.artifacts.artifact_store import ArtifactStore
from orchestrator.domain.dataset import parse_dataset
from orchestrator.domain.gang import TaskFailed, TaskOrder, TaskProgress
from orchestrator.domain.spec_file import read_spec
from orchestrator.domain.task_spec import TaskSpec
from orchestrator.training.checkpoint import dump_checkpoint, load_checkpoint
from orchestrator.training.sharded_base import ShardedBase
from orchestrator.training.sweep_run import SweepRun, open_run
from orchestrator.training.task_data import encode_task
from orchestrator.training.task_run import TaskRun
from orchestrator.training.task_trainer import TaskTrainer
from orchestrator.training.trained_prompt import store_trained_prompt
from tests.orchestrator.training.conftest import (
    MAX_LENGTH,
    WIDTH,
    Loop,
    MakeData,
    MakeTrainer,
    make_spec,
)
from tests.tiny import colour_rows, keeps_row_bits

EXAMPLE = Path(__file__).parents[3] / "examples/sweeps/country-continent.yaml"
RATES = "training.learning_rate"
OVER = {RATES: [1e-4, 0.01, 0.03, 1e-6], "encoder.type": ["mlp", "embedding"]}
SWEEP: dict[str, Any] = {"over": OVER, "halving": {"factor": 2, "first": 2}}
CHANGES: dict[str, Any] = {
    "training": {"steps": 8},
    "evaluation": {"every": 3, "metric": "loss"},
}


class Sweep:
    """A sweep to run, and every trainer it ever had."""

    def __init__(self, make_data: MakeData, sweep: Any = SWEEP, **changes: Any) -> None:
        splits = {name: changes.pop(name) for name in ("test",) if name in changes}
        self.spec = make_spec("colour", sweep=sweep, **{**CHANGES, **changes})
        self.data = make_data(self.spec, **splits)
        self.bank = EncoderBank()
        self.trainers: dict[str, TaskTrainer] = {}
        run = open_run("job-colour", self.spec, self.make)
        assert isinstance(run, SweepRun)
        self.run = run

    def make(self, key: str, spec: TaskSpec) -> TaskTrainer:
        self.trainers[key] = TaskTrainer(spec, self.data, WIDTH, None, self.bank, key)
        return self.trainers[key]

    @property
    def states(self) -> list[str]:
        return [row["state"] for row in self.run.report()["trials"]]

    @property
    def steps(self) -> list[int]:
        return [row["steps"] for row in self.run.report()["trials"]]


MakeSweep = Callable[..., Sweep]


@pytest.fixture
def make_sweep(make_data: MakeData) -> MakeSweep:
    return lambda *args, **changes: Sweep(make_data, *args, **changes)


@pytest.fixture(scope="module")
def run_undisturbed(base: ShardedBase, make_data: MakeData) -> Callable[[int | None], Sweep]:
    """The sweep from its start to its end, once for each number of trials at a time."""

    @cache
    def run(concurrent: int | None) -> Sweep:
        sweep = Sweep(make_data, {**SWEEP, "concurrent": concurrent})
        Loop(base, [sweep.run])
        return sweep

    return run


@pytest.fixture
def undisturbed(run_undisturbed: Callable[[int | None], Sweep]) -> Sweep:
    return run_undisturbed(None)


def alone_to(base: ShardedBase, make_data: MakeData, spec: TaskSpec, step: int) -> TaskTrainer:
    """The trainer of a trial's spec, trained by itself, after `step`."""
    trainer = TaskTrainer(spec, make_data(spec), WIDTH)
    Loop(base, [trainer], is_stopping=lambda: trainer.step >= step)
    return trainer


def spoil(trainer: TaskTrainer, at_step: int) -> None:
    """Its weights turn to NaN right before a step."""
    next_rows = trainer.next_rows

    def spoilt() -> Any:
        if trainer.step + 1 == at_step:
            weights = trainer.slot.weights()
            trainer.slot.load_weights({k: torch.full_like(v, math.nan) for k, v in weights.items()})
        return next_rows()

    trainer.next_rows = spoilt  # type: ignore[method-assign]


def test_halving_leaves_one_of_eight_which_wins(base: ShardedBase, make_sweep: MakeSweep) -> None:
    sweep = make_sweep()
    loop = Loop(base, [sweep.run])
    assert loop.finished == [sweep.run]
    assert sorted(sweep.steps) == [2, 2, 2, 2, 4, 4, 8, 8]
    assert sweep.states.count("won") == 1
    assert sum(state.startswith("stopped at step 2: rank ") for state in sweep.states) == 4
    assert sum(state.startswith("stopped at step 4: rank ") for state in sweep.states) == 2
    trials = sweep.run.report()["trials"]
    assert trials[sweep.states.index("won")]["best"] == min(row["best"] for row in trials)
    assert [row["values"] for row in trials[:2]] == [
        {"encoder.type": "mlp", RATES: 1e-4},
        {"encoder.type": "mlp", RATES: 0.01},
    ]
    assert len(sweep.bank) == 0


def test_every_trial_learns_what_its_spec_learns_alone(
    base: ShardedBase, make_data: MakeData, undisturbed: Sweep
) -> None:
    winner = undisturbed.run.trainer
    for trial in undisturbed.run.trials:
        trainer = undisturbed.trainers[trial.key]
        if trainer is winner:
            continue
        alone = alone_to(base, make_data, trial.spec, trial.step)
        found, expected = trainer.slot.weights(), alone.slot.weights()
        for name, weight in found.items():
            assert torch.allclose(weight, expected[name], atol=1e-6), (trial.key, name)
            assert torch.equal(weight, expected[name]) or not keeps_row_bits(), trial.key
        assert trainer.curve["loss"] == alone.curve["loss"] or not keeps_row_bits()


def test_the_winner_is_what_its_spec_gives_alone(
    base: ShardedBase, make_data: MakeData, make_sweep: MakeSweep
) -> None:
    sweep = make_sweep({"over": OVER, "halving": {"factor": 2, "first": 3}}, test=colour_rows(4))
    Loop(base, [sweep.run])
    winner = sweep.run.trainer
    alone = TaskTrainer(winner.spec, make_data(winner.spec, test=colour_rows(4)), WIDTH)
    (run,) = Loop(base, [alone]).finished
    assert run.held_out is not None
    assert sweep.run.held_out is not None
    assert sweep.run.held_out.value == pytest.approx(run.held_out.value, abs=1e-5)
    if keeps_row_bits():
        assert torch.equal(winner.virtual_tokens(), alone.virtual_tokens())
        assert sweep.run.held_out == run.held_out


def test_rows_of_stopped_trials_are_computed_no_more(
    base: ShardedBase, make_sweep: MakeSweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = make_sweep(evaluation={"every": 100}, template="{prompt:4}{word}: {colour}")
    computed: dict[int, set[str]] = {}
    logits = base.model.logits

    def noted(batch: PackedBatch, virtual: Any, *rest: Any) -> Any:
        if torch.is_grad_enabled():
            step = sweep.run.step + 1
            assert computed.setdefault(step, set()) == set(), "one pass a step"
            computed[step] |= set(batch.prompts)
            positions.append(batch.num_positions)
        return logits(batch, virtual, *rest)

    positions: list[int] = []
    monkeypatch.setattr(base.model, "logits", noted)
    Loop(base, [sweep.run], max_positions=10_000)
    assert [len(computed[step]) for step in range(1, 9)] == [8, 8, 4, 4, 2, 2, 2, 2]
    assert positions[2] < 0.6 * positions[0]
    for trial in sweep.run.trials:
        assert sum(trial.key in keys for keys in computed.values()) == trial.step


def test_a_neighbour_learns_the_same_beside_a_sweep(
    base: ShardedBase, make_trainer: MakeTrainer, make_sweep: MakeSweep
) -> None:
    alone, beside = make_trainer("neighbour"), make_trainer("neighbour")
    Loop(base, [alone])
    Loop(base, [make_sweep().run, beside])
    assert torch.allclose(beside.virtual_tokens(), alone.virtual_tokens(), atol=1e-6)
    assert torch.equal(beside.virtual_tokens(), alone.virtual_tokens()) or not keeps_row_bits()


@pytest.mark.parametrize(("step", "concurrent"), [(1, None), (2, 3), (5, None), (5, 3)])
def test_a_resumed_sweep_ends_as_an_undisturbed_one_to_the_bit(
    base: ShardedBase,
    make_sweep: MakeSweep,
    run_undisturbed: Callable[[int | None], Sweep],
    step: int,
    concurrent: int | None,
) -> None:
    undisturbed = run_undisturbed(concurrent)
    sweep = {**SWEEP, "concurrent": concurrent}
    first = make_sweep(sweep)
    Loop(base, [first.run], is_stopping=lambda: first.run.step >= step)
    data = dump_checkpoint(first.run.state())
    resumed = make_sweep(sweep)
    resumed.run.restore(load_checkpoint(data))
    assert resumed.steps == first.steps
    again = {**resumed.run.state(), "seconds": load_checkpoint(data)["seconds"]}
    assert dump_checkpoint(again) == data
    Loop(base, [resumed.run])
    if keeps_row_bits():
        assert resumed.run.report() == undisturbed.run.report()
        one, other = resumed.run.trainer, undisturbed.run.trainer
        assert torch.equal(one.virtual_tokens(), other.virtual_tokens())
        assert one.curve == other.curve
    assert resumed.states == undisturbed.states
    assert len(resumed.bank) == 0


def test_waiting_trials_take_the_slots_of_stopped_ones_at_once(
    base: ShardedBase, make_sweep: MakeSweep
) -> None:
    sweep = make_sweep({**SWEEP, "concurrent": 3})
    counts: list[int] = []
    Loop(base, [sweep.run], keep=lambda runs: counts.append(len(sweep.run.training)))
    waiting = counts.index(2)
    assert set(counts[:waiting]) == {3}
    assert len(sweep.trainers) == 8
    assert counts == sorted(counts, reverse=True)
    assert "waiting" not in sweep.states
    trials = sweep.run.report()["trials"]
    assert trials[sweep.states.index("won")]["best"] == min(row["best"] for row in trials)


def test_a_trial_that_turns_to_nan_leaves_the_others_alone(
    base: ShardedBase, make_sweep: MakeSweep, undisturbed: Sweep
) -> None:
    sweep = make_sweep()
    loser = undisturbed.states.index(next(s for s in undisturbed.states if "rank 8 of 8" in s))
    spoil(sweep.trainers[f"colour/{loser}"], at_step=2)
    loop = Loop(base, [sweep.run])
    assert loop.events_of(TaskFailed) == []
    assert sweep.states[loser].startswith("failed: the loss or its gradient is not a finite number")
    assert "at step 2" in sweep.states[loser]
    assert sweep.steps[loser] == 1
    assert sweep.states.index("won") == undisturbed.states.index("won")
    found, expected = sweep.run.trainer, undisturbed.run.trainer
    assert torch.allclose(found.virtual_tokens(), expected.virtual_tokens(), atol=1e-6)
    assert len(sweep.bank) == 0


def test_when_the_best_trials_fail_the_best_that_was_stopped_wins(
    base: ShardedBase, make_sweep: MakeSweep, undisturbed: Sweep
) -> None:
    sweep = make_sweep()
    for trial in undisturbed.run.trials:
        if trial.step == 8:
            spoil(sweep.trainers[trial.key], at_step=7)
    (run,) = Loop(base, [sweep.run]).finished
    assert sum(state.startswith("failed") for state in sweep.states) == 2
    left = [row for row in sweep.run.report()["trials"] if not row["state"].startswith("failed")]
    (won,) = [row for row in left if row["state"] == "won"]
    assert won["best"] == min(row["best"] for row in left)
    assert won["steps"] < 8
    assert run.trainer.step == won["steps"]


def test_a_sweep_fails_when_all_its_trials_fail(base: ShardedBase, make_sweep: MakeSweep) -> None:
    sweep = make_sweep({"over": {RATES: [0.1, 0.2]}})
    for trainer in sweep.trainers.values():
        spoil(trainer, at_step=3)
    loop = Loop(base, [sweep.run])
    (failure,) = loop.events_of(TaskFailed)
    assert failure.job_id == "job-colour"
    assert failure.reason.startswith(
        f"all 2 trials failed; the first, with {RATES} 0.1, failed: the loss or its gradient is not"
    )
    assert loop.finished == []
    assert len(sweep.bank) == 0


def test_a_trial_that_cannot_be_built_fails_alone(make_data: MakeData) -> None:
    spec = make_spec(sweep={"over": {RATES: [0.1, 0.2]}})
    data = make_data(spec)

    def make(key: str, trial: TaskSpec) -> TaskTrainer:
        if key in unbuildable:
            raise ValueError("no room")
        return TaskTrainer(trial, data, WIDTH, key=key)

    unbuildable = {"colour/0"}
    assert [trial.state for trial in SweepRun("job", spec, make).trials] == ["failed", "training"]
    unbuildable = {"colour/0", "colour/1"}
    with pytest.raises(ValueError, match="all 2 trials failed; .*, failed: no room"):
        SweepRun("job", spec, make)


def test_a_trial_that_stops_early_keeps_its_best_score(
    base: ShardedBase, make_sweep: MakeSweep
) -> None:
    over = {"training.early_stop": [{"target": 100}, None]}
    sweep = make_sweep({"over": over}, evaluation={"every": 3, "metric": "loss"})
    Loop(base, [sweep.run])
    assert sweep.steps == [3, 8]
    assert sweep.states == ["ended early after step 3", "won"]
    trials = sweep.run.report()["trials"]
    assert trials[0]["best_step"] == 3
    assert trials[0]["best"] > trials[1]["best"]


def test_of_equal_trials_the_first_wins(base: ShardedBase, make_sweep: MakeSweep) -> None:
    sweep = make_sweep({"over": {"training.early_stop": [None, {"patience": 99}]}})
    Loop(base, [sweep.run])
    assert sweep.states[0] == "won"


def test_progress_tells_how_many_trials_are_left(base: ShardedBase, make_sweep: MakeSweep) -> None:
    sweep = make_sweep()
    told = Loop(base, [sweep.run]).events_of(TaskProgress)
    stages = list(dict.fromkeys(event.stage for event in told))
    lefts = [f"{left} of 8 trials left" for left in (8, 4, 2, 0)]
    assert stages == [*lefts, "testing"]
    assert [event.step for event in told if "left" in event.stage] == list(range(1, 9))
    assert told[-1].num_steps == 8
    assert sweep.run.progress("done").stage.startswith("done: trial ")
    assert 'won with encoder.type "' in sweep.run.progress("done").stage


def test_the_winner_becomes_the_version_and_the_trials_are_told_beside_it(
    base: ShardedBase, make_data: MakeData, make_sweep: MakeSweep, tmp_path: Path
) -> None:
    sweep = make_sweep({"over": {**OVER, "training.seed": [7]}, "halving": {"first": 3}})
    (run,) = Loop(base, [sweep.run]).finished
    store = ArtifactStore(str(tmp_path))

    def stored(of: TaskRun, spec: TaskSpec) -> Any:
        digests = dict.fromkeys(("train", "eval"), "0" * 64)
        order = TaskOrder(of.job_id, spec, digests, "f" * 64, 1.0)
        return store_trained_prompt(of, order, "0.1.0", store)

    trained = stored(run, sweep.spec)
    assert trained.config["training"]["learning_rate"] == run.trainer.spec.training.learning_rate
    assert trained.config["encoder"]["type"] == run.trainer.spec.encoder.type
    assert trained.lineage.seed == 7
    assert trained.lineage.spec_digest == sweep.spec.digest()
    told = json.loads(store.get_bytes(trained.artifacts["sweep"].digest))
    assert told == run.report()
    assert told["metric"] == "loss"
    assert len(told["trials"]) == 8
    alone = TaskTrainer(run.trainer.spec, make_data(run.trainer.spec), WIDTH)
    (other,) = Loop(base, [alone]).finished
    plain = stored(other, run.trainer.spec)
    assert "sweep" not in plain.artifacts
    assert plain.config == trained.config
    assert plain.digest == trained.digest or not keeps_row_bits()


def test_the_example_of_the_readme_is_a_sweep_that_trains(
    base: ShardedBase, tokenizer: TextTokenizer
) -> None:
    spec = read_spec(EXAMPLE)
    fields = (*spec.parsed_template().fields, spec.answer)
    datasets = {
        split: parse_dataset(b"\n".join(_first_lines(EXAMPLE.parent / file)), file, fields)
        for split, file in spec.data.files().items()
    }
    data = encode_task(spec, datasets, tokenizer, MAX_LENGTH)
    bank = EncoderBank()
    run = open_run("job", spec, lambda key, trial: TaskTrainer(trial, data, WIDTH, None, bank, key))
    assert Loop(base, [run]).finished == [run]
    report = run.report()
    assert report is not None
    states = [row["state"] for row in report["trials"]]
    assert sum(state.startswith("stopped at step 20") for state in states) == 4
    assert sum(state.startswith("stopped at step 40") for state in states) == 2
    assert states.count("won") == 1


def _first_lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines()[:6]
