"""Checkpoints of single tasks: everything a task needs to go on, to the bit, anywhere.

One safetensors artifact a checkpoint, named by its digest; it depends on neither the number of
ranks nor the task's neighbours. It counts once the controller has written its digest to the job.
"""

import io
import time
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from encoders.errors import WeightsError
from encoders.files.state_tree import flatten_state, restore_state
from encoders.files.weights_file import WeightsFile, dump_tensors
from orchestrator.artifacts.artifact_store import ArtifactStore
from orchestrator.domain.errors import TuttiError
from orchestrator.domain.gang import TaskCheckpointed, TaskEvent, TaskNoted
from orchestrator.training.task_run import TaskRun


class Checkpointer:
    """Stores the states of a rank's tasks, of those it `keeps` (by job id), every `every_s` seconds
    at a step boundary. A store that takes nothing is noted and costs no task anything."""

    def __init__(
        self,
        store: ArtifactStore,
        post: Callable[[Sequence[TaskEvent]], None],
        every_s: float,
        now: Callable[[], float] = time.monotonic,
        keeps: Callable[[str], bool] = lambda job_id: True,
    ) -> None:
        self._store, self._post, self._every_s, self._now = store, post, every_s, now
        self._keeps = keeps
        self._last = now()

    def keep(self, runs: Sequence[TaskRun]) -> None:
        """Store the states of `runs` and tell it, if it is time."""
        if self._now() < self._last + self._every_s:
            return
        self.keep_now(runs)
        self._last = self._now()

    def keep_now(self, runs: Sequence[TaskRun]) -> None:
        """Store the states of `runs` whatever the time, and tell it."""
        self._post([self._kept(run) for run in runs if self._keeps(run.job_id)])

    def _kept(self, run: TaskRun) -> TaskCheckpointed | TaskNoted:
        try:
            artifact = self._store.put_bytes(dump_checkpoint(run.state()))
        except TuttiError as error:
            text = f"no checkpoint after step {run.step}: {error}"
            return TaskNoted(run.job_id, run.epoch, text)
        return TaskCheckpointed(run.job_id, run.step, artifact.digest, run.epoch)


def dump_checkpoint(state: dict[str, Any]) -> bytes:
    """A state's bytes: plain values and tensors, nested as they are."""
    tensors: dict[str, Tensor] = {}
    tree = flatten_state(state, "", tensors)
    return dump_tensors(tensors, tree)


def load_checkpoint(data: bytes) -> dict[str, Any]:
    """The state `dump_checkpoint` was given. Raises WeightsError for anything else."""
    weights = WeightsFile(io.BytesIO(data), len(data), "the checkpoint")
    try:
        state = restore_state(weights.metadata, weights.read())
    except ValueError as error:
        raise WeightsError(f"not a checkpoint: {error}") from error
    if not isinstance(state, dict):
        raise WeightsError("not a checkpoint: it holds no state")
    return state
