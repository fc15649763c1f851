"""A trial of a sweep: one training among those that share a job's rows."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from orchestrator.domain.bracket import Standing
from orchestrator.domain.task_spec import TaskSpec
from orchestrator.training.evaluation import Score
from orchestrator.training.task_trainer import TaskTrainer

#: Makes the trainer of a trial from its key and spec; ValueError where there can be none.
MakeTrainer = Callable[[str, TaskSpec], TaskTrainer]
NO_SCORE = (-math.inf, -math.inf)


@dataclass
class Trial:
    """`note` says how it came to its state. `trainer` is there while it trains; of those that do
    not, the sweep keeps the best one's."""

    key: str
    spec: TaskSpec
    state: Literal["waiting", "training", "ended", "stopped", "failed"] = "waiting"
    note: str = ""
    step: int = 0
    best: Score | None = None
    best_step: int = 0
    trainer: TaskTrainer | None = None

    @property
    def standing(self) -> Standing:
        return Standing(self.step, self.best.key if self.best else NO_SCORE)

    def start(self, make: MakeTrainer) -> None:
        """Take a slot; a trial that cannot be built has failed."""
        try:
            self.trainer = make(self.key, self.spec)
        except ValueError as error:
            self.state, self.note = "failed", f"failed: {error}"
        else:
            self.state = "training"

    def take_stock(self) -> None:
        """Take over what its trainer knows; a trial that is done leaves."""
        assert self.trainer is not None
        self._read(self.trainer)
        if self.trainer.is_done:
            is_early = self.step < self.spec.training.steps
            self.end("ended", f"ended{' early' * is_early} after step {self.step}")

    def end(self, state: Literal["ended", "stopped", "failed"], note: str) -> None:
        """Leave the training; the slot is free. What failed is kept no longer."""
        assert self.trainer is not None
        self._read(self.trainer)
        self.state, self.note = state, note
        self.trainer.release()
        if state == "failed":
            self.trainer = None

    def _read(self, trainer: TaskTrainer) -> None:
        self.step, self.best, self.best_step = trainer.step, trainer.best, trainer.best_step

    def kept(self) -> dict[str, Any]:
        """All that `restore` needs."""
        return {
            "state": self.state,
            "note": self.note,
            "step": self.step,
            "best": self.best.as_tuple() if self.best else None,
            "best_step": self.best_step,
            "trainer": self.trainer.state() if self.trainer else None,
        }

    def restore(self, kept: Mapping[str, Any], make: MakeTrainer) -> None:
        """Go on from what was `kept` of this very trial."""
        if self.state == "training" and self.trainer is not None:
            self.trainer.release()
        self.state, self.note = kept["state"], kept["note"]
        self.step, self.best_step = kept["step"], kept["best_step"]
        self.best = Score(*kept["best"]) if kept["best"] else None
        self.trainer = make(self.key, self.spec) if kept["trainer"] else None
        if self.trainer is not None:
            self.trainer.restore(kept["trainer"])
            if self.state != "training":
                self.trainer.release()
