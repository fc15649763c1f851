"""A gang, from the driver's side: one Ray Train V2 run in a thread, polled by its board."""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orchestrator.domain.gang import GangOrder, GangStatus, Node
from orchestrator.training.board import Board
from orchestrator.training.node import measure_node
from orchestrator.training.worker import WorkerConfig, WorkerOptions, run_worker

MAX_WORKER_FAILURES = 2
STOP_TIMEOUT_S = 60.0


class RayGang:
    """A started Ray Train run. Its tasks' ends arrive through the board, never by its result."""

    def __init__(self, trainer: Any, board: Any) -> None:
        self._board = board
        self._error: str | None = None
        self._thread = threading.Thread(target=self._fit, args=(trainer,), daemon=True)
        self._thread.start()

    def _fit(self, trainer: Any) -> None:
        try:
            trainer.fit()
        except Exception as error:  # whatever broke the run is told by poll()
            self._error = _root_cause(error)

    def poll(self) -> GangStatus:
        """Events since the last poll; the last status of an ended run still carries its events."""
        import ray

        is_running = self._thread.is_alive()
        try:
            events = ray.get(self._board.take.remote(), timeout=60)
        except Exception as error:  # the board is gone: so is the cluster
            return GangStatus((), False, _root_cause(error))
        return GangStatus(tuple(events), is_running, None if is_running else self._error)

    def stop(self) -> None:
        """Ask the workers to leave at their next step, and wait until the run has ended.

        Ray must not be shut down under a thread that waits on it: that ends this process.
        """
        import ray

        if self._thread.is_alive():
            ray.get(self._board.stop.remote())
            self._thread.join(STOP_TIMEOUT_S)


class RayGangLauncher:
    """Starts gangs on a Ray cluster that is up (see ray_cluster.py)."""

    def __init__(
        self,
        bases: Path,
        artifact_url: str,
        logs: Path,
        storage: Path,
        options: WorkerOptions,
    ) -> None:
        self._bases, self._artifact_url = bases, artifact_url
        self._logs, self._storage, self._options = logs, storage, options

    def nodes(self) -> Sequence[Node]:
        """Ask every machine of the cluster what it has."""
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
        """Start one worker a rank and return at once."""
        import ray
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        board = ray.remote(Board).options(num_cpus=0).remote()
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
            scaling_config=ScalingConfig(
                num_workers=len(order.ranks), resources_per_worker={"CPU": 1}
            ),
            run_config=RunConfig(
                name=order.name,
                storage_path=str(self._storage),
                failure_config=FailureConfig(max_failures=MAX_WORKER_FAILURES),
            ),
        )
        return RayGang(trainer, board)


def _root_cause(error: BaseException) -> str:
    """The last line of what went wrong, without Ray's frames."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
