"""A task on a rank: its trainer, the scores beside its curve, and the time it has taken."""

import time
from typing import Any

from orchestrator.domain.gang import TaskProgress
from orchestrator.training.evaluation import Score
from orchestrator.training.task_trainer import TaskTrainer


class TaskRun:
    """One job's work. `trainer` is what the job is to hand over; `manual` and `held_out` are scores
    once they are known; `failure` says why the job cannot be done. `epoch` is its lease's, and
    `start_note` says for people where it starts."""

    def __init__(self, job_id: str, trainer: TaskTrainer) -> None:
        self.job_id = job_id
        self.trainer = trainer
        self.manual: Score | None = None
        self.held_out: Score | None = None
        self.failure: str | None = None
        self.epoch = 0
        self.start_note = "starts"
        self._started = time.monotonic()

    @property
    def name(self) -> str:
        return self.trainer.spec.task

    @property
    def step(self) -> int:
        """Steps taken."""
        return self.trainer.step

    @property
    def num_steps(self) -> int:
        return self.trainer.spec.training.steps

    @property
    def seconds(self) -> float:
        """Seconds of training, those before a checkpoint included."""
        return time.monotonic() - self._started

    @property
    def training(self) -> list[TaskTrainer]:
        """Those that take the next step."""
        return [] if self.failure or self.is_done else [self.trainer]

    @property
    def due(self) -> list[TaskTrainer]:
        """Those to be judged after this step."""
        return [self.trainer] if not self.failure and self.trainer.is_evaluation_due else []

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to train."""
        return self.trainer.is_done

    def fail(self, trainer: TaskTrainer, reason: str) -> None:
        """`trainer` cannot go on."""
        self.failure = reason

    def settle(self) -> None:
        """Take stock after a step and its evaluations."""

    def release(self) -> None:
        """Give the slots back: the run is over."""
        self.trainer.release()

    def report(self) -> dict[str, Any] | None:
        """What there is to tell beside the trained prompt, as JSON."""
        return None

    def progress(self, stage: str = "training") -> TaskProgress:
        loss = self.trainer.curve.get("loss", [(0, None)])[-1][1]
        best = self.trainer.best.value if self.trainer.best else None
        return TaskProgress(
            self.job_id, self.step, self.num_steps, loss, best, self.seconds, stage, self.epoch
        )

    def evaluation_note(self) -> str:
        """The figures of the evaluation that has just been, for people."""
        trainer = self.trainer
        figures = {
            name.removeprefix("eval_"): points[-1][1]
            for name, points in trainer.curve.items()
            if name.startswith("eval_")
        }
        text = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
        is_best = trainer.best_step == self.step
        return f"step {self.step} of {self.num_steps}: {text}{' (the best so far)' * is_best}"

    def end_note(self) -> str:
        """How the training ended, for people."""
        score = self.held_out
        text = (
            f": {score.metric} {score.value:.4g} at step {self.trainer.best_step}" if score else ""
        )
        return f"trained in {self.seconds:.1f} s{text}"

    def state(self) -> dict[str, Any]:
        """All that `restore` needs, between two steps."""
        return {
            "job": self.job_id,
            "seconds": self.seconds,
            "manual": self.manual.as_tuple() if self.manual else None,
            **self._training_state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`. Raises worker_errors.UNUSABLE where it is another training's;
        the run is then of no use."""
        if state["job"] != self.job_id:
            raise ValueError(f"the checkpoint is of job {state['job']}, not {self.job_id}")
        self._restore_training(state)
        self.manual = Score(*state["manual"]) if state["manual"] else None
        self._started = time.monotonic() - state["seconds"]

    def _training_state(self) -> dict[str, Any]:
        return {"trainer": self.trainer.state()}

    def _restore_training(self, state: dict[str, Any]) -> None:
        self.trainer.restore(state["trainer"])
