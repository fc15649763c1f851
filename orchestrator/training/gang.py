"""A gang, from the driver's side: one Ray Train V2 run in a thread, spoken to through its board."""

import contextlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from orchestrator.domain.gang import GangOrder, GangStatus, Node, TaskOrder
from orchestrator.training.board import Board
from orchestrator.training.node import measure_node
from orchestrator.training.worker import WorkerConfig, WorkerOptions, run_worker

#: How often Ray looks whether there is room for more workers. A look costs nothing, but growing
#: starts all workers again; a machine that comes back is worth that, and so are ten seconds of it.
RESIZE_INTERVAL_S = 10.0
ASK_TIMEOUT_S = 60.0
END_TIMEOUT_S = 5.0
WITHOUT_LIMIT = -1  # the board bounds restarts: of those that come to nothing


class RayGang:
    """A started Ray Train run. Its tasks' ends arrive through the board, never by its result."""

    def __init__(self, trainer: Any, board: Any) -> None:
        self._board = board
        self._failure: str | None = None
        self._is_ending = False
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
        """What came since the last poll; the last status of an ended run still carries its events.
        A run that the board has given up is killed."""
        is_running = self._thread.is_alive()
        try:
            status: GangStatus = self._ask("take")
        except Exception as error:  # the board is gone: so is the cluster, or what is left of it
            return GangStatus(is_running=False, error=f"the gang's board is gone: {error}")
        if is_running:
            if status.error is not None:
                self.kill()
            return replace(status, error=None)
        return replace(status, is_running=False, error=self._why_ended(status.error))

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
        if self._thread.is_alive():
            self._end(lambda run: run.kill())

    def kill(self) -> None:
        """End the run now; whatever its workers still do counts no more, and they end themselves by
        their next beat. Ray's train controller is asked to end, so that it gives everything back:
        killed, it would leave the machines reserved that the next gang needs."""
        if self._thread.is_alive():
            self._is_ending = True
            self._end(lambda run: run.abort())

    def _end(self, end: Callable[[Any], None]) -> None:
        with contextlib.suppress(Exception):  # a board that is gone has no say any more
            run = self._ask("end", "the gang was ended")
            if run is not None:  # else it will ask the board first, and not begin
                end(run)
                self._thread.join(END_TIMEOUT_S)

    def _tell(self, method: str, *arguments: Any) -> None:
        getattr(self._board, method).remote(*arguments)

    def _ask(self, method: str, *arguments: Any) -> Any:
        import ray

        return ray.get(getattr(self._board, method).remote(*arguments), timeout=ASK_TIMEOUT_S)


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
        """Ask every machine of the cluster what it has."""
        self._connect()
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        measure = ray.remote(measure_node)
        asked = [
            measure.options(
                num_cpus=0,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
            ).remote(int(node["Resources"]["CPU"]), "GPU" in node["Resources"])
            for node in ray.nodes()
            if node["Alive"] and node["Resources"].get("CPU")
        ]
        nodes: list[Node] = ray.get(asked)
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


def _scaling(order: GangOrder) -> Any:
    from ray.train import ScalingConfig

    few, many = order.min_workers, order.max_workers
    return ScalingConfig(
        num_workers=many if few == many else (few, many),
        resources_per_worker={"CPU": 1},
        elastic_resize_monitor_interval_s=RESIZE_INTERVAL_S,
    )
