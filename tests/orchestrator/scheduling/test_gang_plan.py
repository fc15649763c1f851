from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.domain.gang import TaskOrder
from orchestrator.domain.job import Job, JobState
from orchestrator.scheduling.gang_plan import assign_ranks, group_jobs, num_ranks
from tests.orchestrator.scheduling.conftest import submission

START = datetime(2026, 1, 1, tzinfo=UTC)


def job(number: int, task: str, base: str = "b", stage: int | None = None) -> Job:
    sharding = None if stage is None else {"zero_stage": stage}
    made = submission(task, base, sharding=sharding, training={"seed": number})
    created = START + timedelta(seconds=number)
    return Job(f"job-{number}", made, JobState.QUEUED, 0, created)


def order(
    number: int, num_positions: float = 10.0, steps: int = 10, is_shared: bool = False
) -> TaskOrder:
    sharding = {"data_parallel": True} if is_shared else None
    made = submission(f"task-{number}", training={"steps": steps}, sharding=sharding)
    return TaskOrder(f"job-{number}", made.spec, made.datasets, "b", num_positions)


def work(order: TaskOrder) -> float:
    return order.num_positions * order.spec.training.steps


orders = st.lists(st.tuples(st.floats(1, 1000), st.integers(1, 200)), min_size=0, max_size=12).map(
    lambda sizes: [order(i, *size) for i, size in enumerate(sizes)]
)


@given(orders, st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_every_order_is_placed_once(orders: list[TaskOrder], num_workers: int) -> None:
    ranks = assign_ranks(orders, num_workers)
    assert len(ranks) == num_workers
    placed = Counter(each.job_id for rank in ranks for each in rank)
    assert placed == Counter(each.job_id for each in orders)


@given(orders, st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_loads_differ_by_no_more_than_one_task(orders: list[TaskOrder], num_workers: int) -> None:
    loads = [sum(map(work, rank)) for rank in assign_ranks(orders, num_workers)]
    largest = max(map(work, orders), default=0.0)
    assert max(loads) - min(loads) <= largest * (1 + 1e-9)


def test_loads_are_balanced_by_steps_and_positions() -> None:
    ranks = assign_ranks([order(0, 10, 100), order(1, 100, 9), order(2, 5, 20)], 2)
    assert [[each.job_id for each in rank] for rank in ranks] == [["job-0"], ["job-1", "job-2"]]


def test_the_plan_is_the_same_each_time() -> None:
    orders = [order(i) for i in range(7)]
    assert assign_ranks(orders, 3) == assign_ranks(orders, 3)


def test_jobs_of_one_base_share_a_gang_in_their_order() -> None:
    jobs = [job(1, "a"), job(2, "b"), job(3, "c", base="other")]
    assert group_jobs(jobs, 0) == {("b", 0): jobs[:2], ("other", 0): jobs[2:]}


def test_a_spec_may_ask_for_its_own_sharding() -> None:
    jobs = [job(1, "a"), job(2, "b", stage=3), job(3, "c", stage=0)]
    assert list(group_jobs(jobs, 0)) == [("b", 0), ("b", 3)]
    assert group_jobs(jobs, 3) == {("b", 3): jobs[:2], ("b", 0): jobs[2:]}
    assert list(group_jobs(jobs, None)) == [("b", None), ("b", 3), ("b", 0)]


def test_a_spec_may_share_its_rows_and_leave_the_stage_to_the_setting() -> None:
    made = submission("a", "b", sharding={"data_parallel": True})
    jobs = [Job("job-1", made, JobState.QUEUED, 0, START), job(2, "b")]
    assert group_jobs(jobs, None) == {("b", None): jobs}


def test_a_second_job_of_a_task_waits_for_the_first() -> None:
    jobs = [job(1, "a"), job(2, "a"), job(3, "b"), job(4, "a", base="other")]
    assert group_jobs(jobs, 0) == {("b", 0): [jobs[0], jobs[2]]}


def test_nothing_queued_makes_no_gang() -> None:
    assert group_jobs([], 0) == {}


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("xy")), max_size=8))
@settings(max_examples=60, deadline=None)
def test_every_task_is_planned_once_by_its_oldest_job(names: list[tuple[str, str]]) -> None:
    jobs = [job(i, task, base) for i, (task, base) in enumerate(names)]
    planned = [each for group in group_jobs(jobs, 0).values() for each in group]
    oldest = {each.task: each for each in reversed(jobs)}
    assert sorted(planned, key=lambda j: j.id) == sorted(oldest.values(), key=lambda j: j.id)


@pytest.mark.parametrize(
    ("num_workers", "num_tasks", "zero_stage", "expected"),
    [(2, 8, 0, 2), (4, 3, 0, 3), (4, 1, 0, 1), (4, 1, 3, 4), (1, 5, 3, 1), (2, 0, 0, 1)],
)
def test_a_whole_base_needs_no_idle_rank_and_a_split_one_needs_all(
    num_workers: int, num_tasks: int, zero_stage: int, expected: int
) -> None:
    orders = [order(number) for number in range(num_tasks)]
    assert num_ranks(num_workers, orders, zero_stage) == expected


def test_a_task_that_shares_its_rows_is_on_every_rank_and_first_there() -> None:
    orders = [order(0), order(1, is_shared=True), order(2)]
    assert num_ranks(4, orders, 0) == 4
    ranks = assign_ranks(orders, 3)
    placed = [[each.job_id for each in rank] for rank in ranks]
    assert placed == [["job-1", "job-0"], ["job-1", "job-2"], ["job-1"]]
