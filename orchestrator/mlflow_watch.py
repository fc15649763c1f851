"""MLflow told what happened, and asked now and then what was changed there by hand.

One thread does both: two at once would make a version two runs. What differs is handled as the
setting says, and stays a line of the log: a window on the registry is not worth a controller.
"""

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from orchestrator.bootstrap import Parts
from orchestrator.domain.prompt_version import Promotion, PromptRef

if TYPE_CHECKING:
    from orchestrator.tracking.drift import Drift
    from orchestrator.tracking.reconcile import Policy, Repair, SyncReport

LOOK_S = 300.0  # between two looks
LOOK_SHARE = 20  # a look takes one part of so many of the time: a large MLflow is looked at less
logger = logging.getLogger("tutti.controller")


def sync_mlflow(
    parts: Parts, policy: "Policy | None" = None, task: str | None = None
) -> "SyncReport":
    """Find where MLflow differs and repair it, its aliases by `policy`, else by the setting. Raises
    TuttiError while another process tells MLflow."""

    def adopt(ref: PromptRef, number: int | None, if_current: int) -> Promotion:
        return _adopt(parts, ref, number, if_current)

    return parts.reconciler.sync(policy or parts.settings.mlflow_drift, adopt, task)


class MlflowWatch:
    """What a controller does about MLflow, in bits."""

    def __init__(self, parts: Parts, now: Callable[[], float] = time.monotonic) -> None:
        self._parts, self._now = parts, now
        self._next_look = now() + LOOK_S
        self._told: set[Drift] = set()
        self._error: str | None = None

    def attend(self) -> str | None:
        """Tell MLflow what it has not heard yet and, if it is time, look what differs there; return
        why that could not be (None: it could)."""
        began = self._now()
        if began >= self._next_look and self._parts.mirror.take_turn():
            try:
                self._look()
            finally:
                ended = self._now()
                self._next_look = ended + max(LOOK_S, LOOK_SHARE * (ended - began))
        return self._parts.mirror.deliver().error or self._error

    def _look(self) -> None:
        report = sync_mlflow(self._parts)
        for repair in report.repairs:
            if repair.done or repair.drift not in self._told:
                _tell(repair)
        self._error = report.error
        left = {repair.drift for repair in report.repairs if not repair.done}
        self._told = left if report.error is None else self._told | left


def _tell(repair: "Repair") -> None:
    found = {
        "what": repair.drift.kind.replace("_", " "),
        "of": repair.drift.subject,
        "registry": repair.drift.registry or "none",
        "mlflow": repair.drift.mlflow or "none",
    }
    if repair.done:
        logger.info("MLflow differed from the registry", extra={**found, "done": repair.done})
    else:
        logger.warning("MLflow differs from the registry", extra={**found, "error": repair.error})


def _adopt(parts: Parts, ref: PromptRef, number: int | None, if_current: int) -> Promotion:
    """Promote what MLflow's alias points at, or take the alias away, unless it has moved here
    since."""
    from orchestrator.registry.own_spec import own_gate

    prompts, task, alias = parts.prompts, ref.task, str(ref.target)
    actor, reason = f"mlflow, adopted by {parts.actor}", "changed by hand in MLflow"
    if number is None:
        return prompts.unset(task, alias, actor, reason, if_current)
    target = PromptRef(task, number)
    gate = own_gate(parts.jobs, prompts.resolve(target), alias)
    return prompts.promote(target, alias, actor, reason, gate, if_current=if_current)
