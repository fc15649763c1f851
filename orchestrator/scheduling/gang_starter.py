"""Starts gangs: asks how a base is to be held, launches, admits the first jobs.

What cannot be now for want of a cluster, of machines or of room is nobody's fault: the jobs wait,
their logs say why, and it is tried again. What is wrong with a base itself fails its jobs.
"""

import logging
import math
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from orchestrator.domain.errors import (
    ClusterUnavailable,
    IntegrityError,
    InvalidInput,
    StaleLease,
    TuttiError,
)
from orchestrator.domain.gang import GangLauncher, GangOrder
from orchestrator.domain.job import Fault, QueuedJob
from orchestrator.registry.errors import DatabaseUnavailable
from orchestrator.scheduling.decisions import GangKey, StartGang
from orchestrator.scheduling.gang_keeper import GangKeeper
from orchestrator.scheduling.gang_plan import Limits, key_of
from orchestrator.scheduling.ledger import Ledger
from orchestrator.scheduling.shard_plan import ShardPlan

MAX_LAUNCH_FAILURES = 3
#: Until a gang that cannot be started now is tried again.
HOLD_BACK_S = 30.0
logger = logging.getLogger("tutti.controller")


@dataclass(frozen=True)
class ControllerOptions:
    """`holder` names this process in leases. `min_workers` is how few workers a gang may go on
    with; `start_timeout_s` is for one stage of a gang's start."""

    holder: str
    limits: Limits
    code_version: str
    min_workers: int = 1
    start_timeout_s: float = 600.0


@dataclass(frozen=True)
class Cluster:
    """What the controller asks of the world. `connect` makes sure of a cluster to launch on (or
    raises ClusterUnavailable), `num_cpus` counts its processors now (None before it is joined),
    `shard` plans how a base is held (fingerprint, stage asked for, workers that would hold it
    whole), `is_dead` knows holders that are gone for certain."""

    launcher: GangLauncher
    connect: Callable[[], None]
    shard: Callable[[str, int | None, int], ShardPlan]
    max_length: Callable[[str], int]
    is_dead: Callable[[str], bool]
    num_cpus: Callable[[], int | None] = lambda: None
    pause: Callable[[float], None] = time.sleep


class GangStarter:
    """Turns decisions to start into gangs. `prepare` comes before `launch`."""

    def __init__(self, ledger: Ledger, cluster: Cluster, options: ControllerOptions) -> None:
        self._ledger, self._cluster, self._options = ledger, cluster, options
        self._num_failures = 0
        self._held_back: dict[GangKey, float] = {}  # until when
        self._told: set[GangKey] = set()  # whose jobs know that they wait
        self.min_workers: dict[GangKey, int] = {}  # of split bases, once they were looked at

    def is_held_back(self, job: QueuedJob) -> bool:
        """Whether a job's kind of gang could not be started a moment ago."""
        key = key_of(job, self._options.limits.zero_stage)
        return self._held_back.get(key, -math.inf) > self._ledger.now()

    def prepare(self, decision: StartGang, others: Sequence[GangOrder]) -> GangOrder | None:
        """The order for a gang beside the `others`; None where it cannot be now, or never. Raises
        ClusterUnavailable where no cluster can be joined."""
        self._cluster.connect()
        try:
            return self._order(decision, others)
        except DatabaseUnavailable:
            raise
        except (InvalidInput, IntegrityError) as error:  # a base that was altered
            self._fail(decision.job_ids, str(error))
        except ClusterUnavailable as error:
            self._hold_back(decision, str(error))
        except TuttiError as error:  # a base that does not fit; it may, when others have left
            if others:
                self._hold_back(decision, str(error))
            else:
                self._fail(decision.job_ids, str(error))
        return None

    def launch(self, decision: StartGang, order: GangOrder) -> GangKeeper | None:
        """Start it; None where the cluster did not take it. Raises TuttiError the third time."""
        try:
            gang = self._cluster.launcher.launch(order)
        except Exception as error:  # Ray raises many kinds; each means the cluster does not take it
            self._num_failures += 1
            logger.error("gang cannot be started", extra={"error": repr(error)})
            if self._num_failures >= MAX_LAUNCH_FAILURES:
                raise TuttiError(
                    f"no gang can be started on the Ray cluster: {error}",
                    "See `ray status` and the cluster's logs; `tutti doctor` checks this machine.",
                ) from error
            return None
        self._num_failures = 0
        self._held_back.pop(decision.key, None)
        self._told.discard(decision.key)
        logger.info("gang is started", extra={"gang": order.name, "sharding": order.sharding})
        return GangKeeper(gang, order, decision.key, self._ledger)

    def admit(self, keeper: GangKeeper, job_ids: Sequence[str]) -> None:
        """Claim jobs for a gang, and hand over those that were still to be had."""
        name, lease_s = keeper.order.name, self._ledger.lease_s
        claimed = self._ledger.queue.claim(job_ids, self._options.holder, lease_s, name)
        logger.info("jobs are admitted", extra={"gang": name, "jobs": list(claimed)})
        if claimed:
            keeper.admit(claimed)

    def _order(self, decision: StartGang, others: Sequence[GangOrder]) -> GangOrder | None:
        key, num_workers = decision.key, decision.num_workers
        sharding = self._cluster.shard(key.base_fingerprint, key.zero_stage, num_workers)
        if sharding.zero_stage == 3:  # the more hold it, the less each holds
            free = self._options.limits.num_workers - sum(other.max_workers for other in others)
            num_workers = max(num_workers, free)
        if sharding.min_workers > 1:
            self.min_workers[key] = sharding.min_workers
        if num_workers < sharding.min_workers:  # planning knows it from now on, and makes room
            least = f"it takes {sharding.min_workers} workers, and {num_workers} are free"
            self._tell(decision, f"{sharding.reason}; {least}")
            return None
        return GangOrder(
            name=f"gang-{secrets.token_hex(4)}",
            base_fingerprint=key.base_fingerprint,
            max_length=self._cluster.max_length(key.base_fingerprint),
            code_version=self._options.code_version,
            zero_stage=sharding.zero_stage,
            min_workers=max(sharding.min_workers, min(self._options.min_workers, num_workers)),
            max_workers=num_workers,
            offload=sharding.offload,
            sharding=sharding.reason,
            shares_rows=key.shares_rows,
        )

    def _hold_back(self, decision: StartGang, reason: str) -> None:
        """Try a gang later; its jobs wait and say why."""
        self._tell(decision, reason)
        self._held_back[decision.key] = self._ledger.now() + HOLD_BACK_S

    def _tell(self, decision: StartGang, reason: str) -> None:
        """Tell jobs once why they wait."""
        if decision.key in self._told:
            return
        self._told.add(decision.key)
        self._ledger.queue.note([(job_id, f"waits: {reason}") for job_id in decision.job_ids])
        logger.warning("gang has to wait", extra={"reason": reason})

    def _fail(self, job_ids: Sequence[str], reason: str) -> None:
        """Fail jobs that no gang can be started for."""
        queue = self._ledger.queue
        claimed = queue.claim(job_ids, self._options.holder, self._ledger.lease_s)
        for _, lease in claimed.values():
            with suppress(StaleLease):
                queue.fail(lease, reason, Fault.USER)
                self._ledger.counters.failures += 1
