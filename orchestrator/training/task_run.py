"""A task on a rank: its trainer, the scores beside its curve, and the time it has taken."""

import time
from typing import Any

from orchestrator.domain.gang import TaskProgress
from orchestrator.training.evaluation import Score
from orchestrator.training.task_trainer import TaskTrainer


class TaskRun:
    """One job's work. `manual` and `held_out` are scores once they are known."""

    def __init__(self, job_id: str, trainer: TaskTrainer) -> None:
        self.job_id = job_id
        self.trainer = trainer
        self.manual: Score | None = None
        self.held_out: Score | None = None
        self.is_over = False
        self._started = time.monotonic()

    @property
    def name(self) -> str:
        return self.trainer.spec.task

    @property
    def seconds(self) -> float:
        """Seconds of training, those before a checkpoint included."""
        return time.monotonic() - self._started

    def progress(self, stage: str = "training") -> TaskProgress:
        trainer = self.trainer
        loss = trainer.curve.get("loss", [(0, None)])[-1][1]
        best = trainer.best.value if trainer.best else None
        steps = trainer.spec.training.steps
        return TaskProgress(self.job_id, trainer.step, steps, loss, best, self.seconds, stage)

    def state(self) -> dict[str, Any]:
        """All that `restore` needs, between two steps."""
        return {
            "job": self.job_id,
            "seconds": self.seconds,
            "manual": self.manual.as_tuple() if self.manual else None,
            "trainer": self.trainer.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`. Raises KeyError, TypeError, ValueError or RuntimeError where it is
        another training's; the run is then of no use."""
        if state["job"] != self.job_id:
            raise ValueError(f"the checkpoint is of job {state['job']}, not {self.job_id}")
        self.trainer.restore(state["trainer"])
        self.manual = Score(*state["manual"]) if state["manual"] else None
        self._started = time.monotonic() - state["seconds"]
