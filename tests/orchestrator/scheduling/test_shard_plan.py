from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.domain.errors import TuttiError
from orchestrator.domain.gang import Node
from orchestrator.scheduling.shard_plan import (
    BaseSize,
    ShardOptions,
    ShardPlan,
    forced_plan,
    plan_sharding,
    worker_memory,
)

GB = 10**9
SMALL = BaseSize("smollm2-135m", 134_515_008, 576)
LARGE = BaseSize("llama-7b", 7 * 10**9, 4096)  # 28 GB of weights, 14.5 GB to work in
LAPTOP = Node(2, int(23.4 * GB))


def plan(base: BaseSize, *nodes: Node, num_whole: int | None = None, **options: Any) -> ShardPlan:
    made = ShardOptions(**{"num_workers": 2, **options})
    return plan_sharding(base, nodes, num_whole or made.num_workers, made)


def test_a_base_that_fits_is_whole_on_every_worker() -> None:
    made = plan(SMALL, LAPTOP)
    assert (made.zero_stage, made.offload) == (0, "none")
    assert made.reason == (
        "smollm2-135m: 0.5 GB of weights fit each worker's 11.7 GB of memory: "
        "whole on every worker (stage 0)"
    )


def test_a_base_that_does_not_fit_is_split() -> None:
    made = plan(LARGE, *[Node(1, 40 * GB)] * 4, num_workers=4, max_positions=256)
    assert (made.zero_stage, made.offload) == (0, "none")
    made = plan(LARGE, *[Node(1, 24 * GB)] * 4, num_workers=4, max_positions=256)
    assert (made.zero_stage, made.offload) == (3, "none")
    assert made.reason == (
        "llama-7b: 28.0 GB of weights and 4.0 GB to work in exceed a worker's 24.0 GB of memory: "
        "split over 4 workers (stage 3), 7.0 GB each"
    )


def test_a_plan_says_how_few_workers_can_hold_the_base() -> None:
    nodes = [Node(1, 24 * GB)] * 4
    made = plan(LARGE, *nodes, num_workers=4, max_positions=256)
    assert 1 < made.min_workers < 4
    assert plan(LARGE, *nodes, num_workers=made.min_workers, max_positions=256).zero_stage == 3
    with pytest.raises(TuttiError):
        plan(LARGE, *nodes, num_workers=made.min_workers - 1, max_positions=256)
    assert plan(SMALL, LAPTOP).min_workers == 1


def test_fewer_tasks_leave_more_memory_to_each_whole_base() -> None:
    node = Node(4, 40 * GB)
    assert plan(LARGE, node, num_whole=1, max_positions=256).zero_stage == 0
    assert plan(LARGE, node, num_whole=2, max_positions=256).zero_stage == 3


GPU_HOST = Node(8, 64 * GB, (16 * GB, 16 * GB))


def test_parts_go_beside_the_gpu_only_if_that_is_allowed_and_they_fit_there() -> None:
    with pytest.raises(TuttiError):
        plan(LARGE, GPU_HOST, max_positions=256)
    made = plan(LARGE, GPU_HOST, max_positions=256, offload="cpu")
    assert (made.zero_stage, made.offload) == (3, "cpu")
    assert "a worker's 16.0 GB of GPU memory" in made.reason
    assert made.reason.endswith("14.0 GB each, kept in main memory")
    with pytest.raises(TuttiError):
        plan(LARGE, Node(8, 20 * GB, (16 * GB,) * 2), max_positions=256, offload="cpu")


def test_main_memory_is_no_other_place_for_a_worker_that_lives_in_it() -> None:
    with pytest.raises(TuttiError):
        plan(LARGE, LAPTOP, max_positions=256, offload="cpu")


def test_parts_on_disk_need_buffers_alone() -> None:
    made = plan(LARGE, LAPTOP, max_positions=256, offload="nvme")
    assert (made.zero_stage, made.offload) == (3, "nvme")
    assert made.reason.endswith("14.0 GB each, kept on disk")


def test_offload_that_is_not_needed_is_not_used() -> None:
    assert plan(SMALL, LAPTOP, offload="nvme").offload == "none"
    made = plan(LARGE, *[Node(1, 24 * GB)] * 4, num_workers=4, max_positions=256, offload="nvme")
    assert made.offload == "none"


def test_what_fits_nowhere_is_refused_with_numbers_and_remedies() -> None:
    with pytest.raises(TuttiError) as caught:
        plan(LARGE, LAPTOP, max_positions=256)
    assert caught.value.message == (
        "llama-7b: 28.0 GB of weights and 4.0 GB to work in exceed a worker's 11.7 GB of memory: "
        "split over 2 workers (stage 3), 14.0 GB each, would still take 18.4 GB a worker, which "
        "has 11.7 GB of memory"
    )
    for name in ("NUM_WORKERS, now 2", "MAX_POSITIONS, now 256", "OFFLOAD, now none"):
        assert f"TUTTI_{name}" in caught.value.remedy


def test_a_given_memory_stands_in_for_the_measured_one() -> None:
    assert worker_memory([LAPTOP], 2, 8 * GB).device_bytes == 4 * GB
    assert worker_memory([GPU_HOST], 4, 8 * GB).device_bytes == 4 * GB
    assert plan(LARGE, LAPTOP, max_positions=256, device_bytes=100 * GB).zero_stage == 0


@pytest.mark.parametrize(
    ("nodes", "num_workers", "expected"),
    [
        ([Node(2, 20)], 1, (20, 0)),
        ([Node(2, 20)], 2, (10, 0)),
        ([Node(2, 20), Node(2, 12)], 4, (6, 0)),
        ([Node(2, 20)], 8, (10, 0)),  # two run here, the others nowhere
        ([Node(8, 64, (16, 24))], 1, (16, 64)),
        ([Node(8, 64, (16, 24))], 2, (16, 32)),
        ([Node(8, 64, (16, 24))], 3, (8, 21)),
        ([Node(8, 64, (16,)), Node(8, 30)], 2, (8, 32)),
    ],
)
def test_workers_share_the_machine_they_run_on(
    nodes: list[Node], num_workers: int, expected: tuple[int, int]
) -> None:
    memory = worker_memory(nodes, num_workers)
    assert (memory.device_bytes, memory.beside_bytes) == expected


def test_a_cluster_without_machines_is_refused() -> None:
    with pytest.raises(TuttiError, match="no machine"):
        worker_memory([], 2)


def test_what_is_asked_for_is_not_judged() -> None:
    assert forced_plan(LARGE, 0, "cpu").offload == "none"
    made = forced_plan(LARGE, 3, "cpu")
    assert (made.zero_stage, made.offload) == (3, "cpu")
    assert "as asked for" in made.reason


@given(
    st.integers(10**6, 10**11), st.integers(64, 16384), st.integers(1, 64), st.integers(1, 10**12)
)
@settings(max_examples=100, deadline=None)
def test_a_plan_never_takes_more_than_there_is(
    num_parameters: int, hidden_size: int, num_workers: int, memory: int
) -> None:
    base = BaseSize("base", num_parameters, hidden_size)
    nodes = [Node(1, memory)] * num_workers
    try:
        made = plan(base, *nodes, num_workers=num_workers)
    except TuttiError:
        assert base.weight_bytes // num_workers + base.working_bytes(1024) >= memory - GB
        return
    held = base.weight_bytes // (num_workers if made.zero_stage == 3 else 1)
    assert held + base.working_bytes(1024) <= memory
