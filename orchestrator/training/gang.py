"""A gang, from the driver's side: one Ray Train V2 run in a thread, spoken to through its board."""

import contextlib
import logging
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from orchestrator.domain.errors import ClusterUnavailable
from orchestrator.domain.gang import GangOrder, GangStatus, Node, TaskOrder
from orchestrator.training.board import Board
from orchestrator.training.members import STARTING
from orchestrator.training.node import measure_node
from orchestrator.training.worker import WorkerConfig, WorkerOptions, run_worker

#: How often Ray looks whether there is room for more workers. A look costs nothing, but growing
#: starts all workers again; a machine that comes back is worth that, and so are ten seconds of it.
RESIZE_INTERVAL_S = 10.0
END_TIMEOUT_S = 5.0
LAST_WORDS_S = 30.0  # that the board of an ended run has for its last answer
NODES_TIMEOUT_S = 30.0
logger = logging.getLogger("tutti.gang")
WITHOUT_LIMIT = -1  # the board bounds restarts: of those that come to nothing


class RayGang:
    """A started Ray Train run. Its tasks' ends arrive through the board, never by its result.

    The board is asked one question at a time, and looked at for the answer: a slow one costs no
    event and holds nobody up. Ray keeps the order of what is told to it from here. `now` gives
    seconds that only grow.
    """

    def __init__(self, trainer: Any, board: Any, now: Callable[[], float] = time.monotonic) -> None:
        self._board, self._now = board, now
        self._failure: str | None = None
        self._gone: str | None = None  # why the board answers no more
        self._is_ending = False
        self._status, self._answered = GangStatus(stage=STARTING), now()
        self._question: Any = None  # the reference of the answer to "take"
        self._is_last_question, self._last_words_by = False, math.inf
        self._is_given_up = self._is_aborted = False
        self._end_answer: Any = None
        self._thread = threading.Thread(target=self._fit, args=(trainer,), daemon=True)
        self._thread.start()

    def _fit(self, trainer: Any) -> None:
        from orchestrator.training.gang_watch import cause_of

        try:
            trainer.fit()
        except Exception as error:  # whatever broke the run is told by poll()
            self._failure = cause_of(error)

    def admit(self, orders: Sequence[TaskOrder]) -> None:
        """Train these too, from the next step boundary on."""
        self._tell("admit", list(orders))

    def withdraw(self, job_id: str, epoch: int, keeps: bool) -> None:
        """Let a task leave at its next step boundary; if it `keeps`, after a last checkpoint."""
        self._tell("withdraw", job_id, epoch, keeps)

    def poll(self) -> GangStatus:
        """What the board has answered since the last poll, else the last status, aged; the last
        status of an ended run still carries its events. A run that the board has given up is
        killed."""
        if self._gone is None:
            try:
                status = self._answer()
            except Exception as error:  # so is the cluster, or what is left of it
                self._gone = f"the gang's board is gone: {_first_line(error)}"
            else:
                if self._is_given_up:
                    self._abort(0.0)
                return status
        return GangStatus(is_running=False, error=self._gone)

    def _answer(self) -> GangStatus:
        is_running = self._thread.is_alive()
        if not is_running:
            self._last_words_by = min(self._last_words_by, self._now() + LAST_WORDS_S)
        status = self._look() if self._question is not None else None
        is_last = status is not None and self._is_last_question
        if is_last or self._now() > self._last_words_by:
            told = status or replace(self._status, events=())
            return replace(told, is_running=False, error=self._why_ended(self._status.error))
        if self._question is None:
            self._question, self._is_last_question = self._board.take.remote(), not is_running
        return replace(status or self._aged(), error=None)

    def _look(self) -> GangStatus | None:
        """The board's answer, if it is there."""
        import ray
        from ray.exceptions import ActorUnavailableError

        ready, _ = ray.wait([self._question], timeout=0)
        if not ready:
            return None
        try:
            self._status = ray.get(self._question)
        except ActorUnavailableError:  # it may come back; if not, the next answer says so
            return None
        finally:
            self._question = None
        self._answered = self._now()
        self._is_given_up = self._is_given_up or self._status.error is not None
        return self._status

    def _aged(self) -> GangStatus:
        """The last status without its events; who was silent then has been silent since."""
        age_s, last = self._now() - self._answered, self._status
        return replace(
            last,
            events=(),
            silent_s={job_id: silent_s + age_s for job_id, silent_s in last.silent_s.items()},
            stage_s=last.stage_s + age_s if last.stage else 0.0,
        )

    def _why_ended(self, told: str | None) -> str | None:
        return told or (None if self._is_ending else self._failure)

    def finish(self) -> None:
        """Let the run end at the next step boundary; return at once."""
        self._is_ending = True
        self._tell("stop")

    def stop(self, timeout_s: float) -> None:
        """Let all tasks leave with a last checkpoint, and wait until the run has ended; kill it
        after `timeout_s`.

        Ray must not be shut down under a thread that waits on it: that ends this process.
        """
        self.finish()
        self._thread.join(timeout_s)
        self.kill()
        if self._thread.is_alive() and (run := self._train_run(END_TIMEOUT_S)) is not None:
            with contextlib.suppress(Exception):
                run.kill()
            self._thread.join(END_TIMEOUT_S)

    def kill(self) -> None:
        """End the run now; whatever its workers still do counts no more, and they end themselves by
        their next beat. Ray's train controller is asked to end, so that it gives everything back:
        killed, it would leave the machines reserved that the next gang needs."""
        if self._thread.is_alive():
            self._is_ending = True
            self._abort(END_TIMEOUT_S)
            self._thread.join(END_TIMEOUT_S)

    def _abort(self, timeout_s: float) -> None:
        """Ask the board to end, and Ray's train controller once the board has named it: each once,
        however often this is called."""
        self._is_ending = True
        run = self._train_run(timeout_s)
        if run is not None and not self._is_aborted:
            self._is_aborted = True
            with contextlib.suppress(Exception):
                run.abort()

    def _train_run(self, timeout_s: float) -> Any:
        """Ray's train run as the board knows it; None if the board is gone or has not answered, and
        before the run has told of itself: it will ask the board first, and not begin."""
        import ray

        with contextlib.suppress(Exception):  # a board that is gone has no say any more
            if self._end_answer is None:
                self._end_answer = self._board.end.remote("the gang was ended")
            ready, _ = ray.wait([self._end_answer], timeout=timeout_s)
            return ray.get(self._end_answer) if ready else None
        return None

    def _tell(self, method: str, *arguments: Any) -> None:
        with contextlib.suppress(Exception):  # a board that is gone: poll() says so
            getattr(self._board, method).remote(*arguments)


class RayGangLauncher:
    """Starts gangs on a Ray cluster; `connect` joins or starts it, before Ray is first used."""

    def __init__(
        self,
        bases: Path,
        artifact_url: str,
        logs: Path,
        storage: Path,
        options: WorkerOptions,
        connect: Callable[[], None] = lambda: None,
    ) -> None:
        self._bases, self._artifact_url = bases, artifact_url
        self._logs, self._storage, self._options = logs, storage, options
        self._connect = connect

    def nodes(self) -> Sequence[Node]:
        """Ask every machine of the cluster what it has; one that is lost meanwhile, or does not
        answer, is left out. Raises ClusterUnavailable if that leaves none."""
        self._connect()
        import ray
        from ray.exceptions import RayError

        try:
            asked = [_measured(node) for node in ray.nodes() if _can_train(node)]
            answers, _ = ray.wait(asked, num_returns=len(asked), timeout=NODES_TIMEOUT_S)
        except (RayError, ValueError, ConnectionError) as error:  # no machine to wait for, no head
            raise _no_machines(error) from error
        nodes, reason = [], f"no machine answered within {NODES_TIMEOUT_S:g} s"
        for answer in answers:
            try:
                nodes.append(ray.get(answer))
            except RayError as error:
                reason = _first_line(error)
                logger.warning("a machine could not be measured", extra={"reason": reason})
        if not nodes:
            raise _no_machines(reason)
        return nodes

    def launch(self, order: GangOrder) -> RayGang:
        """Start a gang without tasks and return at once."""
        self._connect()
        import ray
        from ray.train import FailureConfig, RunConfig
        from ray.train.torch import TorchConfig, TorchTrainer
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        from orchestrator.training.gang_watch import GangWatch

        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        board = (  # beside this process, as Ray's train controller: no other machine's loss ends it
            ray.remote(Board)
            .options(num_cpus=0, scheduling_strategy=here)
            .remote(self._options.silence_s)
        )
        config = WorkerConfig(
            order=order,
            base_folder=self._bases / order.base_fingerprint,
            artifact_url=self._artifact_url,
            log_folder=self._logs / order.name,
            options=self._options,
            board=board,
        )
        trainer = TorchTrainer(
            lambda: run_worker(config),
            torch_config=TorchConfig(backend="gloo"),
            scaling_config=_scaling(order),
            run_config=RunConfig(
                name=order.name,
                storage_path=str(self._storage),
                failure_config=FailureConfig(
                    max_failures=WITHOUT_LIMIT,
                    controller_failure_limit=WITHOUT_LIMIT,
                    max_preemption_failures=WITHOUT_LIMIT,
                ),
                callbacks=[GangWatch(board)],
            ),
        )
        return RayGang(trainer, board)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


def _can_train(node: Mapping[str, Any]) -> bool:
    return bool(node["Alive"] and node["Resources"].get("CPU"))


def _measured(node: Mapping[str, Any]) -> Any:
    """The reference of a machine's measures."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    measure = ray.remote(measure_node).options(num_cpus=0, scheduling_strategy=there)
    return measure.remote(int(node["Resources"]["CPU"]), "GPU" in node["Resources"])


def _no_machines(reason: object) -> ClusterUnavailable:
    return ClusterUnavailable(
        f"no machine of the Ray cluster can train: {reason}",
        "Look at the cluster with `ray status`; start a machine or wait until one is back.",
    )


def _scaling(order: GangOrder) -> Any:
    from ray.train import ScalingConfig

    few, many = order.min_workers, order.max_workers
    return ScalingConfig(
        num_workers=many if few == many else (few, many),
        resources_per_worker={"CPU": 1},
        elastic_resize_monitor_interval_s=RESIZE_INTERVAL_S,
    )
