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
from orchestrator.domain.gang import GangEvent, TaskCheckpointed
from orchestrator.training.task_run import TaskRun


class Checkpointer:
    """Stores the state of every task of a rank, each `every_s` seconds at a step boundary."""

    def __init__(
        self,
        store: ArtifactStore,
        post: Callable[[Sequence[GangEvent]], None],
        every_s: float,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._post, self._every_s, self._now = store, post, every_s, now
        self._last = now()

    def keep(self, runs: Sequence[TaskRun]) -> None:
        """Store the states of `runs` and tell it, if it is time."""
        if self._now() < self._last + self._every_s:
            return
        for run in runs:
            artifact = self._store.put_bytes(dump_checkpoint(run.state()))
            self._post([TaskCheckpointed(run.job_id, run.step, artifact.digest)])
        self._last = self._now()


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
