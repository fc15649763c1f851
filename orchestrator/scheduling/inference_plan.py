"""Plans how the workers of a batch run hold its bases: each of them whole, or split over all. As
shard_plan.py does for training, for what inference takes: no gradients, one pass at a time."""

from collections.abc import Sequence
from dataclasses import replace

from orchestrator.domain.gang import Node
from orchestrator.scheduling.shard_plan import (
    LIBRARY_BYTES,
    BaseSize,
    ShardOptions,
    ShardPlan,
    plan_sharding,
)

POSITIONS = 2048  # of one forward pass in inference
FLOATS_A_POSITION = 64  # live at once, in units of the base's width: one layer's, no gradients
SMALL_BYTES = 1_500_000_000  # what any machine that runs Ray and torch has for a worker


def working_bytes(base: BaseSize) -> int:
    """What a worker that answers rows takes beside the weights."""
    return LIBRARY_BYTES + POSITIONS * base.hidden_size * FLOATS_A_POSITION * 4


def together(bases: Sequence[BaseSize]) -> BaseSize:
    """The bases of one run as one: a worker holds all of them, and runs one at a time."""
    return BaseSize(
        " and ".join(base.name for base in bases),
        sum(base.num_parameters for base in bases),
        max(base.hidden_size for base in bases),
    )


def is_small(base: BaseSize) -> bool:
    """Whether nobody need look at the machines."""
    return base.weight_bytes + working_bytes(base) <= SMALL_BYTES


def plan_inference(base: BaseSize, nodes: Sequence[Node], options: ShardOptions) -> ShardPlan:
    """The plan for `options.num_workers` workers. Raises TuttiError with figures where they do not
    hold the base even together."""
    options = replace(options, working_bytes=working_bytes(base))
    return plan_sharding(base, nodes, options.num_workers, options)
