"""A sweep on a rank: one job's trials, trained side by side, of which the best becomes a version.

Trials share the job's rows and are neighbours like any tasks: each learns what its spec would learn
alone. Which of them go on follows from scores and their order in the spec, so a resumed sweep goes
the same way. A trial that ends gives its slot back before the next step, to one that waits for it.
"""

import json
from collections.abc import Mapping
from typing import Any

from orchestrator.domain.bracket import Bracket, Standing, rank
from orchestrator.domain.gang import TaskProgress
from orchestrator.domain.task_spec import TaskSpec
from orchestrator.training.task_run import TaskRun
from orchestrator.training.task_trainer import TaskTrainer
from orchestrator.training.trial import MakeTrainer, Trial


def open_run(job_id: str, spec: TaskSpec, make: MakeTrainer) -> TaskRun:
    """A job's run, at its start; ValueError if it cannot be started."""
    if spec.sweep is not None:
        return SweepRun(job_id, spec, make)
    return TaskRun(job_id, make(spec.task, spec))


class SweepRun(TaskRun):
    """The run of a spec with a sweep; `trainer` is the best trial's so far, of equals the first.
    An evaluation at a rung counts for a trial's patience like any other.

    Raises ValueError if no trial can be started.
    """

    def __init__(self, job_id: str, spec: TaskSpec, make: MakeTrainer) -> None:
        assert spec.sweep is not None
        self._spec, self._sweep, self._make = spec, spec.sweep, make
        self.trials = [Trial(key, trial) for key, trial in spec.trials().items()]
        self._bracket = Bracket(self._sweep.halving, self.num_steps)
        self._admit()
        if not self._in_state("training"):
            raise ValueError(self._all_failed())
        super().__init__(job_id, self._trainers()[0])

    @property
    def step(self) -> int:
        """Steps taken by the trial that came furthest."""
        return max(trial.step for trial in self.trials)

    @property
    def num_steps(self) -> int:
        """Steps of the longest trial."""
        return max(trial.spec.training.steps for trial in self.trials)

    @property
    def training(self) -> list[TaskTrainer]:
        return [t.trainer for t in self._in_state("training") if t.trainer is not None]

    @property
    def due(self) -> list[TaskTrainer]:
        return [t for t in self.training if t.is_evaluation_due or t.step in self._bracket.scores]

    @property
    def is_done(self) -> bool:
        return self.failure is None and not self._in_state("training", "waiting")

    def fail(self, trainer: TaskTrainer, reason: str) -> None:
        """A trial that cannot go on is out, whatever it reached before."""
        next(t for t in self.trials if t.trainer is trainer).end("failed", f"failed: {reason}")

    def settle(self) -> None:
        """Stop the trials that a rung leaves behind, end those that are done, start others."""
        for trial in self._in_state("training"):
            trial.take_stock()
        stopped = self._bracket.judge(self._standings("training"), self._standings("ended"))
        for index, reason in stopped.items():
            self.trials[index].end("stopped", reason)
        self._admit()
        self._forget_losers()
        if trainers := self._trainers():
            self.trainer = trainers[0]
        else:
            self.failure = self._all_failed()

    def _standings(self, state: str) -> dict[int, Standing]:
        return {i: trial.standing for i, trial in enumerate(self.trials) if trial.state == state}

    def _admit(self) -> None:
        """Start trials that wait, in order, as many as may train at a time."""
        limit = self._sweep.concurrent or len(self.trials)
        for trial in self._in_state("waiting"):
            if len(self._in_state("training")) < limit:
                trial.start(self._make)

    def _forget_losers(self) -> None:
        """Keep the weights of one trial that trains no more: of the best."""
        over = [t for t in self._best_first() if t.state != "training"]
        for trial in over[1:]:
            trial.trainer = None

    def _best_first(self) -> list[Trial]:
        """The trials that can still win."""
        with_trainer = {
            i: t.standing.score for i, t in enumerate(self.trials) if t.trainer is not None
        }
        return [self.trials[index] for index in rank(with_trainer)]

    def _trainers(self) -> list[TaskTrainer]:
        return [t.trainer for t in self._best_first() if t.trainer is not None]

    def _in_state(self, *states: str) -> list[Trial]:
        return [trial for trial in self.trials if trial.state in states]

    def _all_failed(self) -> str:
        first = self.trials[0]
        values = _text(self._spec.swept_values(first.spec))
        return f"all {len(self.trials)} trials failed; the first, with {values}, {first.note}"

    def release(self) -> None:
        for trainer in self.training:
            trainer.release()

    def report(self) -> dict[str, Any]:
        """Every trial: its values, how far it came, its best held-out score, and how it ended."""
        return {
            "metric": self._spec.evaluation.metric,
            "trials": [self._row(index, trial) for index, trial in enumerate(self.trials)],
        }

    def _row(self, index: int, trial: Trial) -> dict[str, Any]:
        is_winner = self.is_done and trial.trainer is self.trainer
        return {
            "trial": index,
            "values": self._spec.swept_values(trial.spec),
            "steps": trial.step,
            "best": trial.best.value if trial.best else None,
            "best_loss": trial.best.loss if trial.best else None,
            "best_step": trial.best_step,
            "state": "won" if is_winner else trial.note or trial.state,
        }

    def progress(self, stage: str = "training") -> TaskProgress:
        """As of any run; the stage tells of the trials."""
        if stage == "training":
            num_left = len(self._in_state("training", "waiting"))
            stage = f"{num_left} of {len(self.trials)} trials left"
        elif stage == "done":
            stage = f"done: {self._winner()}"
        return super().progress(stage)

    def evaluation_note(self) -> str:
        """Of the whole sweep: a line for each trial would be too many."""
        told = self.progress()
        best = "" if told.best is None else f", best {self._spec.evaluation.metric} {told.best:.4g}"
        return f"step {told.step} of {told.num_steps}: {told.stage}{best}"

    def end_note(self) -> str:
        return f"{super().end_note()}; {self._winner()}"

    def _winner(self) -> str:
        index, trial = next((i, t) for i, t in enumerate(self.trials) if t.trainer is self.trainer)
        return f"trial {index} won with {_text(self._spec.swept_values(trial.spec))}"

    def _training_state(self) -> dict[str, Any]:
        return {"trials": [trial.kept() for trial in self.trials], "rungs": self._bracket.scores}

    def _restore_training(self, state: dict[str, Any]) -> None:
        for trial, kept in zip(self.trials, state["trials"], strict=True):
            trial.restore(kept, self._make)
        self._bracket.scores = state["rungs"]
        self.trainer = self._trainers()[0]


def _text(values: Mapping[str, Any]) -> str:
    """Values for people: numbers to the digits that matter."""
    parts = (f"{v:.4g}" if isinstance(v, float) else json.dumps(v) for v in values.values())
    return ", ".join(f"{path} {part}" for path, part in zip(values, parts, strict=True))
