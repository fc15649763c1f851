"""Which rank trains which task."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.domain.gang import TaskOrder
from orchestrator.domain.placement import EVERY_RANK, place, work_of
from tests.orchestrator.training.conftest import make_spec

SPEC, SHARED = make_spec(), make_spec(sharding={"data_parallel": True})


def orders_of(work: list[float], spec: Any = SPEC) -> list[TaskOrder]:
    return [TaskOrder(f"job-{i}", spec, {}, "f" * 64, each) for i, each in enumerate(work)]


def test_the_heaviest_goes_first_to_the_rank_with_the_least_to_do() -> None:
    ranks = place(orders_of([1, 5, 3, 2]), {0: 0.0, 1: 0.0})
    assert ranks == {"job-1": 0, "job-2": 1, "job-3": 1, "job-0": 0}


def test_what_a_rank_has_counts() -> None:
    assert place(orders_of([1, 1]), {3: 100.0, 7: 0.0}) == {"job-0": 7, "job-1": 7}


def test_a_data_parallel_task_goes_everywhere_and_weighs_nothing() -> None:
    shared = TaskOrder("shared", SHARED, {}, "f" * 64, 9.0)
    ranks = place([shared, *orders_of([2, 1])], {0: 0.0, 1: 0.0})
    assert ranks == {"shared": EVERY_RANK, "job-0": 0, "job-1": 1}


def test_loads_are_left_as_they_were() -> None:
    loads = {0: 0.0}
    place(orders_of([1]), loads)
    assert loads == {0: 0.0}


@given(
    st.lists(st.floats(0.1, 100), max_size=12),
    st.dictionaries(st.integers(0, 5), st.floats(0, 1000), min_size=1),
)
def test_no_rank_that_got_something_is_ahead_of_another_by_more_than_one_task(
    work: list[float], loads: dict[int, float]
) -> None:
    orders = orders_of(work)
    ranks = place(orders, loads)
    assert set(ranks) == {order.job_id for order in orders}
    after = dict(loads)
    for order in orders:
        after[ranks[order.job_id]] += work_of(order)
    for order in orders:
        without = after[ranks[order.job_id]] - work_of(order)
        smallest = min(after.values())
        assert without <= smallest + max(map(work_of, orders)) + 1e-6
