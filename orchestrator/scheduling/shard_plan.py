"""Plans how a gang holds its base: whole on every worker (ZeRO stage 0), split over all (stage 3),
or split with the parts kept elsewhere (offload). Bytes in; a plan, and why, out: no machine.

A worker's memory is its device's, shared with the workers beside it. Besides weights it needs room
to work in: activations of one forward pass, and libraries. Cached texts have their own bound.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.domain.errors import ClusterUnavailable, TuttiError
from orchestrator.domain.gang import LIVE_PARAMETERS, MAX_POSITIONS, Node, Offload

BYTES_PER_PARAMETER = 4  # float32
#: Bytes a position and a (parameter / hidden_size); SmolLM2-135M takes 5.9 (1.4 MB a position).
ACTIVATION_BYTES = 8
LIBRARY_BYTES = 500_000_000  # torch, transformers, DeepSpeed, Ray
_KEPT = {"none": "", "cpu": ", kept in main memory", "nvme": ", kept on disk"}


@dataclass(frozen=True)
class BaseSize:
    """A base model, as far as memory is concerned."""

    name: str
    num_parameters: int
    hidden_size: int

    @property
    def weight_bytes(self) -> int:
        return self.num_parameters * BYTES_PER_PARAMETER

    @property
    def live_bytes(self) -> int:
        """What a worker holds whole of a split base."""
        return min(self.num_parameters, LIVE_PARAMETERS) * BYTES_PER_PARAMETER

    def working_bytes(self, max_positions: int) -> int:
        """Room for a forward pass of `max_positions` and its backward pass, and for libraries."""
        layers = self.num_parameters // self.hidden_size
        return LIBRARY_BYTES + ACTIVATION_BYTES * max_positions * layers


@dataclass(frozen=True)
class ShardOptions:
    """What a plan may use. `device_bytes` stands in for each device's measured memory;
    `working_bytes` for what training would work in, by `max_positions`."""

    num_workers: int
    max_positions: int = MAX_POSITIONS
    offload: Offload = "none"
    device_bytes: int | None = None
    working_bytes: int | None = None

    @property
    def remedy(self) -> str:
        smaller = f"smaller forward passes (TUTTI_MAX_POSITIONS, now {self.max_positions}) "
        return (
            f"Use more machines, fewer workers on each (TUTTI_NUM_WORKERS, now {self.num_workers})"
            f", {smaller if self.working_bytes is None else ''}or offload (TUTTI_OFFLOAD, now "
            f"{self.offload}). TUTTI_ZERO_STAGE=3 goes on without this check."
        )


@dataclass(frozen=True)
class ShardPlan:
    """How DeepSpeed holds the base, and why, in one line; fewer than `min_workers` cannot."""

    zero_stage: int
    offload: Offload
    reason: str
    min_workers: int = 1


@dataclass(frozen=True)
class WorkerMemory:
    """Bytes for one worker: of its device, and of the main memory beside a GPU (else 0)."""

    device_bytes: int
    beside_bytes: int

    @property
    def label(self) -> str:
        kind = "GPU memory" if self.beside_bytes else "memory"
        return f"{_gb(self.device_bytes)} of {kind}"


def forced_plan(base: BaseSize, zero_stage: int, offload: Offload) -> ShardPlan:
    """The plan where the spec or the setting has decided."""
    if zero_stage == 0:
        return ShardPlan(0, "none", f"{base.name}: whole on every worker (stage 0, as asked for)")
    reason = f"{base.name}: split over the workers (stage 3, as asked for){_KEPT[offload]}"
    return ShardPlan(3, offload, reason)


def plan_sharding(
    base: BaseSize, nodes: Sequence[Node], num_whole: int, options: ShardOptions
) -> ShardPlan:
    """The plan that communicates least of those that fit. `num_whole` workers would share the
    machines if each held the whole base, `options.num_workers` if it is split.

    Raises TuttiError where none fits: what is needed, what there is, what to do.
    """
    working = options.working_bytes or base.working_bytes(options.max_positions)
    whole = worker_memory(nodes, num_whole, options.device_bytes)
    weights = f"{base.name}: {_gb(base.weight_bytes)} of weights"
    if base.weight_bytes + working <= whole.device_bytes:
        reason = f"{weights} fit each worker's {whole.label}: whole on every worker (stage 0)"
        return ShardPlan(0, "none", reason)
    split = worker_memory(nodes, options.num_workers, options.device_bytes)
    part = -(-base.weight_bytes // options.num_workers)
    reason = (
        f"{weights} and {_gb(working)} to work in exceed a worker's {whole.label}: split over "
        f"{options.num_workers} workers (stage 3), {_gb(part)} each"
    )
    for offload in ("none", options.offload):
        for num_workers in range(1, options.num_workers + 1):
            memory = worker_memory(nodes, num_workers, options.device_bytes)
            if _split_bytes(base, num_workers, memory, offload, working) <= memory.device_bytes:
                return ShardPlan(3, offload, reason + _KEPT[offload], num_workers)
    needed = _split_bytes(base, options.num_workers, split, options.offload, working)
    raise TuttiError(
        f"{reason}, would still take {_gb(needed)} a worker, which has {split.label}",
        options.remedy,
    )


def _split_bytes(
    base: BaseSize, num_workers: int, memory: WorkerMemory, offload: Offload, working: int
) -> int:
    """What each of `num_workers` that hold the base together takes of its device."""
    part = -(-base.weight_bytes // num_workers)
    if offload == "nvme":
        part = base.live_bytes  # buffers
    elif offload == "cpu" and part <= memory.beside_bytes:
        part = 0
    return working + base.live_bytes + part


def worker_memory(
    nodes: Sequence[Node], num_workers: int, device_bytes: int | None = None
) -> WorkerMemory:
    """What the worker with the least has, when each machine takes as many as it can."""
    if not nodes:
        raise ClusterUnavailable(
            "the Ray cluster has no machine to train on", "Check TUTTI_RAY_ADDRESS."
        )
    return min(
        (_share(node, num_workers, device_bytes) for node in nodes),
        key=lambda memory: memory.device_bytes,
    )


def _share(node: Node, num_workers: int, device_bytes: int | None) -> WorkerMemory:
    here = max(1, min(num_workers, node.num_cpus))
    if not node.gpu_bytes:
        return WorkerMemory((device_bytes or node.memory_bytes) // here, 0)
    workers_a_gpu = -(-here // len(node.gpu_bytes))
    smallest = device_bytes or min(node.gpu_bytes)
    return WorkerMemory(smallest // workers_a_gpu, node.memory_bytes // here)


def _gb(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f} GB"
