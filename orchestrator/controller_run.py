"""Runs a controller in this process, and beside it, in threads, what must never hold a step up:
telling and watching MLflow, and moving the logs of ended jobs to the artifact store.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Self

from orchestrator.bootstrap import Parts, gang_log
from orchestrator.domain.errors import TuttiError
from orchestrator.domain.job import JobState
from orchestrator.log_archive import archive_logs
from orchestrator.mlflow_watch import MlflowWatch
from orchestrator.registry.errors import DatabaseUnavailable

if TYPE_CHECKING:
    from orchestrator.job_watch import JobWatch, Sight
    from orchestrator.scheduling.controller import Controller
    from orchestrator.telemetry.metrics import Metrics, Readings

READ_S = 2.0  # between two readings for the metrics
DELIVER_S = 5.0
ARCHIVE_S = 5.0
LAST_S = 10.0  # for what a thread does at the end
RETRY_S = 10.0  # until a cluster that was away is tried again
UNDONE = (JobState.QUEUED, JobState.ADMITTED, JobState.RUNNING)
logger = logging.getLogger("tutti.controller")


class Chore:
    """Does `work` every `interval_s` seconds in a thread of its own, and once more at the end. It
    returns why it could not be done (None: it was); that, and what it raises, is logged once, and
    it is tried again."""

    def __init__(self, name: str, work: Callable[[], str | None], interval_s: float) -> None:
        self._name, self._work, self._interval_s = name, work, interval_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Let it end; one that hangs is left behind."""
        self._stop.set()
        self._thread.join(LAST_S)

    def _run(self) -> None:
        told: str | None = None
        is_last = False
        while not is_last:
            is_last = self._stop.wait(self._interval_s)
            error = self._attempt()
            if error is not None and error != told:
                logger.warning(f"{self._name} has to wait", extra={"error": error})
            told = error

    def _attempt(self) -> str | None:
        try:
            return self._work()
        except Exception as error:  # a chore is not worth a controller
            return f"{type(error).__name__}: {error}"


@contextmanager
def controller_up(parts: Parts, what: str) -> Iterator["Controller"]:
    """A controller and its chores; Ray's noise goes to a log named after `what`."""

    def archive() -> None:
        archive_logs(parts.jobs, parts.artifacts)

    with (
        Chore("telling MLflow", MlflowWatch(parts).attend, DELIVER_S),
        Chore("archiving logs", archive, ARCHIVE_S),
        parts.controller(gang_log(parts.settings, what)) as controller,
    ):
        yield controller


def serve(
    parts: Parts,
    stop: threading.Event,
    once_idle: bool = False,
    metrics: "Metrics | None" = None,
) -> None:
    """Run a controller until `stop` is set or, if `once_idle`, no job is queued or held.

    A database or cluster that is away is tried again for as long as it takes; `once_idle`, it
    raises. A wrong URL or schema raises at once.
    """
    while not _is_database_up(parts, once_idle):
        if stop.wait(RETRY_S):
            return
    while not stop.is_set():
        try:
            with controller_up(parts, "controller") as controller:
                _steps(parts, controller, stop, once_idle, metrics)
            return
        except TuttiError as error:
            if once_idle:
                raise
            told = {"error": str(error), "again_in_s": RETRY_S}
            logger.error("the controller cannot go on", extra=told)
        stop.wait(RETRY_S)


def _is_database_up(parts: Parts, must: bool) -> bool:
    try:
        parts.jobs.stats()
    except DatabaseUnavailable as error:
        if must:
            raise
        told = {"error": str(error), "again_in_s": RETRY_S}
        logger.error("the controller waits for the database", extra=told)
        return False
    return True


def train_until_over(parts: Parts, watch: "JobWatch", on_change: Callable[["Sight"], None]) -> None:
    """Run a controller until the watched jobs have ended, and what it took up beside them."""
    with controller_up(parts, "train") as controller:
        while not (watch.is_over and controller.is_idle):
            controller.step(admits=not watch.is_over)
            sight = watch.look()
            if sight is not None:
                on_change(sight)
            time.sleep(controller.pause_s)


def _steps(
    parts: Parts,
    controller: "Controller",
    stop: threading.Event,
    once_idle: bool,
    metrics: "Metrics | None",
) -> None:
    next_reading = time.monotonic()
    while not stop.is_set():
        controller.step()
        if time.monotonic() >= next_reading:
            next_reading = time.monotonic() + READ_S
            if metrics is not None:
                _read_into(metrics, parts, controller)
            if once_idle and controller.is_idle and not _is_work_left(parts):
                return
        stop.wait(controller.pause_s)


def _read_into(metrics: "Metrics", parts: Parts, controller: "Controller") -> None:
    try:
        metrics.readings = read_figures(parts, controller)
    except DatabaseUnavailable:
        return  # the figures stay; the controller's log tells


def read_figures(parts: Parts, controller: "Controller") -> "Readings":
    """What the metrics tell, as it is now."""
    from orchestrator.telemetry.metrics import Readings

    stats, counters = parts.jobs.stats(), controller.counters
    oldest = parts.outbox.oldest_pending()
    waited_s = (parts.jobs.now() - oldest.created_at).total_seconds() if oldest else 0.0
    return Readings(
        queue={state.value: stats.counts.get(state, 0) for state in JobState},
        oldest_queued_s=stats.oldest_queued_s or 0.0,
        gangs=parts.gangs.list(),
        admissions=counters.admissions,
        lease_expiries=counters.lease_expiries,
        finished={"succeeded": counters.completions, "failed": counters.failures},
        outbox_pending=parts.outbox.num_pending(),
        outbox_oldest_s=max(0.0, waited_s),
        is_leading=controller.is_leading,
    )


def _is_work_left(parts: Parts) -> bool:
    try:
        counts = parts.jobs.stats().counts
    except DatabaseUnavailable:
        return True
    return any(counts.get(state, 0) for state in UNDONE)
