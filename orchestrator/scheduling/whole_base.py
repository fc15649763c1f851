"""Whether a base fits each worker whole, as inference holds it: without gradients, one pass at a
time. Bytes in; a refusal that says what to do, or nothing, out."""

from collections.abc import Sequence

from orchestrator.domain.errors import TuttiError
from orchestrator.domain.gang import Node
from orchestrator.scheduling.shard_plan import LIBRARY_BYTES, BaseSize, worker_memory

POSITIONS = 2048  # of one forward pass in inference
FLOATS_A_POSITION = 64  # live at once, in units of the base's width: one layer's, no gradients
SMALL_BYTES = 1_500_000_000  # what any machine that runs Ray and torch has for a worker


def needed_bytes(base: BaseSize) -> int:
    """What a worker takes that answers rows with a base."""
    return base.weight_bytes + LIBRARY_BYTES + POSITIONS * base.hidden_size * FLOATS_A_POSITION * 4


def is_small(base: BaseSize) -> bool:
    """Whether nobody need look at the machines."""
    return needed_bytes(base) <= SMALL_BYTES


def check_whole(
    base: BaseSize, nodes: Sequence[Node], num_workers: int, device_bytes: int | None
) -> None:
    """Raise TuttiError where `num_workers` workers on these machines do not hold the base each."""
    memory = worker_memory(nodes, num_workers, device_bytes)
    needed = needed_bytes(base)
    if needed > memory.device_bytes:
        raise TuttiError(
            f"{base.name}: a worker that answers rows takes {needed / 1e9:.1f} GB and has "
            f"{memory.label}; a batch run does not split its base over workers",
            f"Use machines with more memory, or fewer workers on each (TUTTI_NUM_WORKERS, now "
            f"{num_workers}).",
        )
