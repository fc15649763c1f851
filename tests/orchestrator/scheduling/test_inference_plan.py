"""A base that fits a worker whole is held so, one that does not is split, and figures say why."""

import pytest

from orchestrator.domain.errors import TuttiError
from orchestrator.domain.gang import Node, Offload
from orchestrator.scheduling.inference_plan import is_small, plan_inference, together
from orchestrator.scheduling.shard_plan import BaseSize, ShardOptions, ShardPlan

SMOL = BaseSize("smollm2-135m", 134_515_008, 576)
LARGE = BaseSize("large", 7_000_000_000, 4096)


def node(gigabytes: float, num_cpus: int = 2) -> Node:
    return Node(num_cpus=num_cpus, memory_bytes=int(gigabytes * 1e9), gpu_bytes=())


def plan(
    base: BaseSize,
    *nodes: Node,
    num_workers: int = 2,
    device_bytes: int | None = None,
    offload: Offload = "none",
) -> ShardPlan:
    options = ShardOptions(num_workers, offload=offload, device_bytes=device_bytes)
    return plan_inference(base, nodes, options)


def test_a_small_base_needs_no_look_at_machines() -> None:
    assert is_small(SMOL)
    assert not is_small(LARGE)
    assert not is_small(together([SMOL, SMOL, SMOL]))


def test_workers_of_a_machine_share_its_memory() -> None:
    assert plan(LARGE, node(64)).zero_stage == 0
    assert plan(LARGE, node(48)).zero_stage == 3
    assert plan(LARGE, node(48), num_workers=1).zero_stage == 0


def test_a_base_that_does_not_fit_whole_is_split_and_the_plan_says_so_in_a_line() -> None:
    made = plan(LARGE, node(24, 1), node(24, 1))
    assert (made.zero_stage, made.min_workers) == (3, 2)
    assert made.reason == (
        "large: 28.0 GB of weights and 2.6 GB to work in exceed a worker's 24.0 GB of memory: "
        "split over 2 workers (stage 3), 14.0 GB each"
    )


def test_a_base_that_does_not_fit_even_split_is_refused_with_figures() -> None:
    with pytest.raises(TuttiError, match=r"would still take 17.0 GB a worker, which has 8.0 GB"):
        plan(LARGE, node(16))
    with pytest.raises(TuttiError) as refused:
        plan(SMOL, node(64), device_bytes=1_000_000_000)
    assert "TUTTI_ZERO_STAGE=3 goes on without this check" in refused.value.remedy
    assert "TUTTI_MAX_POSITIONS" not in refused.value.remedy  # what a batch run does not go by


def test_bases_of_one_run_are_held_together() -> None:
    both = together([SMOL, LARGE])
    assert both.name == "smollm2-135m and large"
    assert both.weight_bytes == SMOL.weight_bytes + LARGE.weight_bytes
    assert both.hidden_size == 4096
