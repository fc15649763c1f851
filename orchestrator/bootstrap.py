"""Wires the parts together from Settings. The only place that knows which adapter stands where.

Parts are made on first use and imported then, so a command pays for what it needs alone.
"""

import getpass
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.code_version import code_version
from orchestrator.domain.errors import ClusterUnavailable
from orchestrator.holder import is_dead, this_holder
from orchestrator.settings import Settings

if TYPE_CHECKING:
    from orchestrator.artifacts.artifact_store import ArtifactStore
    from orchestrator.bases.base_store import BaseStore
    from orchestrator.domain.gang import GangLauncher, Node
    from orchestrator.registry.access_book import AccessBook
    from orchestrator.registry.base_model_registry import BaseModelRegistry
    from orchestrator.registry.batch_book import BatchBook
    from orchestrator.registry.database import Database
    from orchestrator.registry.gang_book import GangBook
    from orchestrator.registry.job_queue import JobQueue
    from orchestrator.registry.leadership import Leadership
    from orchestrator.registry.outbox import Outbox
    from orchestrator.registry.prompt_registry import PromptRegistry
    from orchestrator.scheduling.controller import Controller
    from orchestrator.scheduling.gang_plan import Limits
    from orchestrator.scheduling.gang_starter import Cluster, ControllerOptions
    from orchestrator.scheduling.ledger import Ledger
    from orchestrator.scheduling.shard_plan import ShardPlan
    from orchestrator.tracking.mlflow_mirror import MlflowMirror
    from orchestrator.tracking.reconcile import Reconciler
    from orchestrator.training.worker import WorkerOptions


#: Leases after which a worker that is not heard of is replaced.
SILENT_LEASES = 5


class Parts:
    """All parts of one Tutti, by their roles."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    @cached_property
    def database(self) -> "Database":
        from orchestrator.registry.database import Database

        return Database.open(self.settings.database_url)

    @cached_property
    def jobs(self) -> "JobQueue":
        from orchestrator.registry.job_queue import JobQueue

        return JobQueue(self.database)

    @cached_property
    def leadership(self) -> "Leadership":
        from orchestrator.registry.leadership import Leadership

        return Leadership(self.database)

    @cached_property
    def gangs(self) -> "GangBook":
        from orchestrator.registry.gang_book import GangBook

        return GangBook(self.database)

    @cached_property
    def batches(self) -> "BatchBook":
        from orchestrator.registry.batch_book import BatchBook

        return BatchBook(self.database)

    @cached_property
    def prompts(self) -> "PromptRegistry":
        from orchestrator.registry.prompt_registry import PromptRegistry

        return PromptRegistry(self.database)

    @cached_property
    def bases(self) -> "BaseModelRegistry":
        from orchestrator.registry.base_model_registry import BaseModelRegistry

        return BaseModelRegistry(self.database)

    @cached_property
    def outbox(self) -> "Outbox":
        from orchestrator.registry.outbox import Outbox

        return Outbox(self.database)

    @cached_property
    def artifacts(self) -> "ArtifactStore":
        from orchestrator.artifacts.artifact_store import ArtifactStore

        return ArtifactStore(self.settings.artifact_url)

    @cached_property
    def base_store(self) -> "BaseStore":
        from orchestrator.bases.base_store import BaseStore

        return BaseStore(self.settings.bases)

    @cached_property
    def mirror(self) -> "MlflowMirror":
        from orchestrator.registry.leadership import MLFLOW, Leadership, Turn
        from orchestrator.tracking.mlflow_mirror import MlflowMirror

        uri = self.settings.mlflow_tracking_uri
        has_server = uri.startswith(("http://", "https://"))
        root = None if has_server else self.settings.mlflow_artifacts
        turn = (
            Turn(Leadership(self.database, MLFLOW), this_holder(), is_dead) if has_server else None
        )
        return MlflowMirror(uri, self.outbox, self.prompts, self.artifacts, root, turn)

    @cached_property
    def reconciler(self) -> "Reconciler":
        from orchestrator.tracking.reconcile import Reconciler

        return Reconciler(self.mirror, self.prompts, self.outbox)

    @cached_property
    def access(self) -> "AccessBook":
        from orchestrator.registry.access_book import AccessBook

        return AccessBook(self.database, self.settings.database_url)

    @cached_property
    def actor(self) -> str:
        """Who acts, for the audit: PostgreSQL's user; on SQLite the operating system's."""
        user = self.access.user()
        if user is not None:
            return user
        try:
            return getpass.getuser()
        except OSError:
            return f"uid-{os.getuid()}"

    def cluster(self, log: Path) -> AbstractContextManager[None]:
        """The Ray cluster, up for as long as the context lasts; noise goes to `log`."""
        from orchestrator.cluster import connected

        return connected(self.settings.ray_address, self.settings.num_workers, log)

    @contextmanager
    def controller(self, log: Path) -> Iterator["Controller"]:
        """A controller. Ray is joined or started with its first gang, and its noise goes to `log`;
        on the way out unfinished jobs go back to the queue, and Ray is left."""
        from orchestrator.scheduling.controller import Controller

        with ExitStack() as up:

            @cache
            def connect() -> None:
                up.enter_context(self.cluster(log))

            cluster, options = self._gang_cluster(connect), self._controller_options()
            controller = Controller(self._ledger(), self.leadership, cluster, options)
            try:
                yield controller
            finally:
                controller.stop()

    def _ledger(self) -> "Ledger":
        from orchestrator.scheduling.ledger import Ledger

        return Ledger(
            queue=self.jobs,
            registry=self.prompts,
            book=self.gangs,
            batches=self.batches,
            discard=self.artifacts.discard,
            actor=self.actor,
            lease_s=self.settings.lease_s,
            now=time.monotonic,
        )

    def _gang_cluster(self, connect: Callable[[], None]) -> "Cluster":
        """What gangs start on; `connect` makes sure that it is there."""
        from orchestrator.cluster import num_live_cpus
        from orchestrator.scheduling.gang_starter import Cluster

        launcher = self._launcher(connect)
        return Cluster(
            launcher=launcher,
            connect=connect,
            num_cpus=num_live_cpus,
            shard=self._planner(launcher),
            max_length=cache(self._verified_max_length),
            is_dead=is_dead,
        )

    def _launcher(self, connect: Callable[[], None]) -> "GangLauncher":
        from orchestrator.training.gang import RayGangLauncher

        return RayGangLauncher(
            bases=self.settings.bases,
            artifact_url=self.artifacts.url,
            logs=self.settings.logs,
            storage=self.settings.home / "ray",
            options=self._worker_options(),
            connect=connect,
        )

    def nodes(self) -> "Sequence[Node]":
        """The machines of the cluster that is up, as they are now."""
        return self._launcher(lambda: None).nodes()

    def _controller_options(self) -> "ControllerOptions":
        from orchestrator.scheduling.gang_starter import ControllerOptions

        return ControllerOptions(
            holder=this_holder(),
            limits=self._limits(),
            code_version=code_version(),
            min_workers=self.settings.min_workers,
            start_timeout_s=self.settings.start_timeout_s,
        )

    def _limits(self) -> "Limits":
        from orchestrator.scheduling.gang_plan import Limits

        settings = self.settings
        return Limits(
            num_workers=settings.num_workers,
            gang_workers=settings.gang_workers,
            step_positions=settings.step_positions,
            grow_positions=settings.grow_positions,
            task_bytes=float(settings.task_memory_mb << 20),
            turn_s=settings.gang_turn_s,
            idle_s=settings.gang_idle_s,
            zero_stage=None if settings.zero_stage == "auto" else settings.zero_stage,
        )

    def _worker_options(self) -> "WorkerOptions":
        from orchestrator.training.worker import WorkerOptions

        settings = self.settings
        return WorkerOptions(
            num_threads=self.threads_per_worker,
            checkpoint_s=settings.checkpoint_s,
            silence_s=SILENT_LEASES * settings.lease_s,
            max_positions=settings.max_positions,
            context_memory_bytes=settings.context_memory_mb << 20,
            context_disk_bytes=settings.context_disk_mb << 20,
            context_dtype=settings.context_dtype,
            weight_copies_bytes=settings.weight_copies_mb << 20,
            offload_folder=settings.offload_folder,
        )

    def _planner(self, launcher: "GangLauncher") -> Callable[[str, int | None, int], "ShardPlan"]:
        """How a base is held: as asked for, else as its size and the machines' memory allow."""
        from orchestrator.scheduling.shard_plan import (
            BaseSize,
            ShardOptions,
            forced_plan,
            plan_sharding,
        )

        settings = self.settings
        gigabytes = settings.device_memory_gb
        options = ShardOptions(
            settings.num_workers,
            settings.max_positions,
            settings.offload,
            int(gigabytes * 1e9) if gigabytes else None,
        )

        def plan(fingerprint: str, zero_stage: int | None, num_whole: int) -> "ShardPlan":
            record = self.bases.get_by_fingerprint(fingerprint)
            base = BaseSize(record.name, record.num_parameters, record.hidden_size)
            if zero_stage is not None:
                return forced_plan(base, zero_stage, settings.offload)
            return plan_sharding(base, launcher.nodes(), num_whole, options)

        return plan

    @property
    def threads_per_worker(self) -> int:
        shared = (os.cpu_count() or 1) // self.settings.num_workers
        return self.settings.worker_threads or max(1, shared)

    def _verified_max_length(self, fingerprint: str) -> int:
        """The longest row a base takes, once its files are seen to be what they were."""
        record = self.bases.get_by_fingerprint(fingerprint)
        folder = self.base_store.path(fingerprint)
        if not folder.exists():
            raise ClusterUnavailable(
                f"the base {record.name} is not on the controller's machine: {folder}",
                "Make TUTTI_HOME/bases of the machine that has it visible here, or add it here.",
            )
        self.base_store.verify(fingerprint)
        return record.max_length

    def close(self) -> None:
        """Let go of the database, if it was opened."""
        if "database" in self.__dict__:
            self.database.close()


def gang_log(settings: Settings, what: str) -> Path:
    """A fresh log file for this process's own noise."""
    return settings.logs / f"{what}-{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}.log"
