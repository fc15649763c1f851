"""A base that does not fit a worker whole is refused with figures; one that does is not."""

import pytest

from orchestrator.domain.errors import TuttiError
from orchestrator.domain.gang import Node
from orchestrator.scheduling.shard_plan import BaseSize
from orchestrator.scheduling.whole_base import check_whole, is_small, needed_bytes

SMOL = BaseSize("smollm2-135m", 134_515_008, 576)
LARGE = BaseSize("large", 7_000_000_000, 4096)


def node(gigabytes: float, num_cpus: int = 2) -> Node:
    return Node(num_cpus=num_cpus, memory_bytes=int(gigabytes * 1e9), gpu_bytes=())


def test_a_small_base_needs_no_look_at_machines() -> None:
    assert is_small(SMOL)
    assert not is_small(LARGE)
    assert needed_bytes(SMOL) > SMOL.weight_bytes


def test_workers_of_a_machine_share_its_memory() -> None:
    check_whole(LARGE, [node(64)], 2, None)
    with pytest.raises(TuttiError, match="large: a worker that answers rows takes 3.* has 2"):
        check_whole(LARGE, [node(48)], 2, None)
    check_whole(LARGE, [node(48)], 1, None)


def test_memory_that_is_set_stands_for_what_is_measured() -> None:
    with pytest.raises(TuttiError, match="does not split its base over workers"):
        check_whole(SMOL, [node(64)], 2, 1_000_000_000)
