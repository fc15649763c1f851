"""Hooks in Ray's train controller: it asks the board before it starts a worker group.

Before a running group is replaced by one of another size, its ranks are asked to store their tasks'
states, so that a growing gang loses no steps. A group that must not start ends the run.
"""

import contextlib
import time
from dataclasses import dataclass
from typing import Any

from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2._internal.execution.scaling_policy import (
    autoscaling_coordinator_client as reservations,
)

# An elastic run reserves machines by name. One whose driver was killed leaves its reservation, and
# no other run can start on them until it ends: after 180 s, were it left as Ray has it.
reservations.AUTOSCALING_REQUESTS_EXPIRE_TIME_S = 30
reservations.AUTOSCALING_REQUESTS_INTERVAL_S = 5

SAVE_TIMEOUT_S = 10.0
CANCEL_TIMEOUT_S = 5.0
MAX_CAUSE = 300  # characters


@dataclass(frozen=True)
class TrainRun:
    """The actor handle of Ray's train controller, and the name of its reservation."""

    controller: Any
    reservation: str

    def abort(self) -> None:
        """Let it end its workers and give back its machines, before anything else it does. While
        it waits for workers to start, that takes up to 60 s."""
        self.controller.abort.remote()

    def kill(self) -> None:
        """End it, its workers, and its reservation, without asking it. Its placement group stays
        until this process leaves Ray."""
        import ray
        from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import (
            get_or_create_autoscaling_coordinator,
        )

        ray.kill(self.controller)
        with contextlib.suppress(Exception):  # a run of a fixed size may have none
            coordinator = get_or_create_autoscaling_coordinator()
            cancelled = coordinator.cancel_request.remote(requester_id=self.reservation)
            ray.get(cancelled, timeout=CANCEL_TIMEOUT_S)


class GangWatch(ControllerCallback):  # type: ignore[misc]
    """Runs in the process of Ray's train controller. `board` is the actor handle of board.Board."""

    def __init__(self, board: Any) -> None:
        self._board = board

    def after_controller_start(self, train_run_context: Any) -> None:
        import ray

        controller = ray.get_runtime_context().current_actor
        self._refuse(self._ask("lead", TrainRun(controller, f"train-{train_run_context.run_id}")))

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        error = getattr(current_state, "training_failed_error", None)
        if error is not None:
            self._ask("lose", cause_of(error))

    def before_controller_execute_resize_decision(self, resize_decision: Any) -> None:
        number, until = self._ask("ask_save"), time.monotonic() + SAVE_TIMEOUT_S
        while not self._ask("is_saved", number) and time.monotonic() < until:
            time.sleep(0.05)
        self._refuse(self._ask("start_group"))

    def _ask(self, method: str, *arguments: Any) -> Any:
        import ray

        return ray.get(getattr(self._board, method).remote(*arguments), timeout=60)

    def _refuse(self, reason: str | None) -> None:
        if reason is not None:
            raise RuntimeError(reason)


_DEATH = ("worker process has died", "node has died", "is unavailable", "actor died unexpectedly")


def cause_of(error: BaseException) -> str:
    """What went wrong, without Ray's frames: one line for people."""
    text = str(error)
    if any(words in text for words in _DEATH):
        return "a worker process or its machine died"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:MAX_CAUSE] if lines else type(error).__name__
