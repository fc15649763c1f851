from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.domain.job import QueuedJob, Quota
from orchestrator.scheduling.decisions import (
    AdmitJobs,
    CloseGang,
    DrainGang,
    GangKey,
    StartGang,
    WithdrawJob,
)
from orchestrator.scheduling.gang_plan import GangView, Limits, plan

NOW = datetime(2026, 11, 24, tzinfo=UTC)
A, B = GangKey("a", 0), GangKey("b", 0)
TWO = Limits(num_workers=2, zero_stage=0)


def queued(name: str, base: str = "a", **fields: object) -> QueuedJob:
    job = QueuedJob(
        id=name,
        task=name,
        owner="ann",
        priority=0,
        created_at=NOW - timedelta(seconds=60),
        base_fingerprint=base,
        zero_stage=None,
        is_data_parallel=False,
        num_positions=300.0,
        num_steps=100,
    )
    return replace(job, **fields)  # type: ignore[arg-type]


def held(name: str, gang: str, **fields: object) -> QueuedJob:
    return queued(name, **{"gang": gang, **fields})  # type: ignore[arg-type]


def test_jobs_of_one_base_share_one_gang_with_a_worker_each() -> None:
    jobs = [queued(f"{i}") for i in range(5)]
    assert plan(jobs, [], [], [], TWO, NOW) == [StartGang(A, 2, ("0", "1", "2", "3", "4"))]
    assert plan(jobs[:1], [], [], [], TWO, NOW) == [StartGang(A, 1, ("0",))]


def test_two_bases_get_a_gang_each_while_workers_last() -> None:
    jobs = [queued("0"), queued("1", "b"), queued("2", "b")]
    assert plan(jobs, [], [], [], TWO, NOW) == [
        StartGang(A, 1, ("0",)),
        StartGang(B, 1, ("1", "2")),
    ]


def test_a_gang_that_is_up_takes_what_fits_it() -> None:
    gangs = [GangView("g", A, 2)]
    jobs = [queued("0"), queued("1", "b"), queued("2")]
    assert plan(jobs, [held("x", "g")], [], gangs, TWO, NOW) == [AdmitJobs("g", ("0", "2"))]


def test_a_busy_gang_gets_a_second_one_beside_it_while_workers_are_free() -> None:
    limits = replace(TWO, grow_positions=700.0)
    gangs = [GangView("g", A, 1)]
    jobs = [queued(f"{i}") for i in range(4)]
    assert plan(jobs, [], [], gangs, limits, NOW) == [
        AdmitJobs("g", ("0", "1")),
        StartGang(A, 1, ("2", "3")),
    ]


def test_without_free_workers_a_gang_fills_up_to_the_budget_of_a_step() -> None:
    limits = Limits(num_workers=1, zero_stage=0, grow_positions=300.0, step_positions=1000.0)
    jobs = [queued(f"{i}") for i in range(5)]
    (admit,) = plan(jobs, [], [], [GangView("g", A, 1)], limits, NOW)
    assert admit == AdmitJobs("g", ("0", "1", "2"))


def test_a_gang_takes_no_more_than_its_workers_memory_holds() -> None:
    limits = Limits(num_workers=1, zero_stage=0, task_bytes=10e9)
    jobs = [queued(f"{i}", num_bytes=4e9) for i in range(4)]
    (admit,) = plan(jobs, [held("x", "g", num_bytes=1e9)], [], [GangView("g", A, 1)], limits, NOW)
    assert admit == AdmitJobs("g", ("0", "1"))
    huge = queued("huge", num_bytes=11e9)
    assert plan([huge], [held("x", "g")], [], [GangView("g", A, 1)], limits, NOW) == []
    assert plan([huge], [], [], [GangView("g", A, 1)], limits, NOW) == [AdmitJobs("g", ("huge",))]


def test_a_job_larger_than_the_budget_has_an_empty_gang_for_itself() -> None:
    limits = Limits(num_workers=1, zero_stage=0, step_positions=1000.0)
    large = queued("large", num_positions=5000.0)
    gang = GangView("g", A, 1)
    assert plan([large], [], [], [gang], limits, NOW) == [AdmitJobs("g", ("large",))]
    assert plan([large], [held("x", "g")], [], [gang], limits, NOW) == []


def test_many_workers_are_shared_out_to_gangs_that_can_die_alone() -> None:
    limits = Limits(num_workers=5, gang_workers=2, zero_stage=0)
    decisions = plan([queued(f"{i}") for i in range(5)], [], [], [], limits, NOW)
    assert decisions == [
        StartGang(A, 2, ("0", "1")),
        StartGang(A, 2, ("2", "3")),
        StartGang(A, 1, ("4",)),
    ]


def test_where_base_or_rows_are_split_all_free_workers_join() -> None:
    four = Limits(num_workers=4, zero_stage=0)
    whole = [queued("0", zero_stage=3), queued("1", zero_stage=3)]
    assert plan(whole, [], [], [], four, NOW) == [StartGang(GangKey("a", 3), 4, ("0", "1"))]
    shared = [queued("0", is_data_parallel=True)]
    assert plan(shared, [], [], [], four, NOW) == [StartGang(GangKey("a", 0, True), 4, ("0",))]


def test_a_closed_gang_takes_nothing_and_keeps_its_workers() -> None:
    gangs = [GangView("g", A, 2, is_open=False)]
    assert plan([queued("0")], [held("x", "g")], [], gangs, TWO, NOW) == []


def test_an_idle_gang_ends_when_its_time_is_up_or_others_wait() -> None:
    gang = GangView("g", A, 2, idle_s=10.0)
    assert plan([], [], [], [gang], TWO, NOW) == []
    assert plan([], [], [], [replace(gang, idle_s=61.0)], TWO, NOW) == [
        CloseGang("g", "it had no work")
    ]
    assert plan([queued("0", "b")], [], [], [gang], TWO, NOW) == [
        CloseGang("g", "others wait for its workers")
    ]
    assert plan([queued("0")], [], [], [gang], TWO, NOW) == [AdmitJobs("g", ("0",))]


def test_a_more_urgent_job_drains_the_gang_of_the_least_urgent() -> None:
    gangs = [GangView("low", A, 1), GangView("high", GangKey("c", 0), 1)]
    running = [held("x", "low"), held("y", "high", priority=5)]
    assert plan([queued("0", "b", priority=3)], running, [], gangs, TWO, NOW) == [
        DrainGang("low", "a job of priority 3 needs its workers")
    ]
    assert plan([queued("0", "b")], running, [], gangs, TWO, NOW) == []


def test_a_gang_that_had_its_turn_is_closed_for_jobs_that_waited_long() -> None:
    old = queued("0", "b", created_at=NOW - timedelta(seconds=400))
    running = [held("x", "g")]
    gang = GangView("g", A, 2, age_s=500.0)
    closed = [CloseGang("g", "jobs on another base waited for its workers")]
    assert plan([old], running, [], [gang], TWO, NOW) == closed
    assert plan([old], running, [], [replace(gang, age_s=100.0)], TWO, NOW) == []
    assert plan([queued("0", "b")], running, [], [gang], TWO, NOW) == []
    more_urgent = [held("x", "g", priority=1)]
    assert plan([old], more_urgent, [], [gang], TWO, NOW) == []
    closing = GangView("h", GangKey("c", 0), 1, is_open=False)
    assert plan([old], running, [], [gang, closing], TWO, NOW) == []


def test_an_owner_at_their_quota_waits_and_the_others_go_on() -> None:
    jobs = [queued(f"{i}") for i in range(3)] + [queued("b", owner="bob")]
    (start,) = plan(jobs, [], [Quota("ann", max_running=2)], [], TWO, NOW)
    assert isinstance(start, StartGang)
    assert sorted(start.job_ids) == ["0", "1", "b"]


def test_ten_thousand_jobs_are_planned_within_the_look_ahead() -> None:
    jobs = [queued(f"{i}", f"base-{i % 50}") for i in range(10_000)]
    decisions = plan(jobs, [], [], [], Limits(num_workers=8, zero_stage=0), NOW)
    assert sum(len(d.job_ids) for d in decisions if isinstance(d, StartGang)) > 8


jobs_strategy = st.lists(
    st.builds(
        lambda i, base, owner, priority, positions, task: queued(
            f"job-{i}",
            base,
            owner=owner,
            priority=priority,
            num_positions=positions,
            task=f"task-{task}",
        ),
        st.integers(0, 10_000),
        st.sampled_from("abc"),
        st.sampled_from(["ann", "bob"]),
        st.integers(-1, 2),
        st.floats(10.0, 3000.0),
        st.integers(0, 30),
    ),
    max_size=40,
    unique_by=lambda job: job.id,
)


@settings(deadline=None, max_examples=100)
@given(jobs_strategy, st.integers(0, 20), st.integers(1, 4), st.integers(1, 8))
def test_every_plan_keeps_its_bounds(
    jobs: list[QueuedJob], num_held: int, bound: int, num_workers: int
) -> None:
    running = [replace(job, gang="g", base_fingerprint="a") for job in jobs[:num_held]]
    ready = sorted(jobs[num_held:], key=lambda job: -job.priority)
    limits = Limits(num_workers=num_workers, zero_stage=0, step_positions=6000.0)
    gangs = [GangView("g", A, 1, age_s=999.0)] if running else []
    decisions = plan(ready, running, [Quota("ann", bound)], gangs, limits, NOW)
    placed = [d for d in decisions if isinstance(d, StartGang | AdmitJobs)]
    ids = [job_id for decision in placed for job_id in decision.job_ids]
    by_id = {job.id: job for job in ready}
    assert len(ids) == len(set(ids))
    tasks = [by_id[i].task for i in ids]
    assert len(tasks) == len(set(tasks))
    assert not set(tasks) & {job.task for job in running}
    anns = sum(by_id[i].owner == "ann" for i in ids)
    assert anns <= max(0, bound - sum(job.owner == "ann" for job in running))
    started = [d for d in placed if isinstance(d, StartGang)]
    assert sum(d.num_workers for d in started) + len(gangs) <= max(num_workers, len(gangs))
    for decision in placed:
        load = sum(by_id[i].num_positions for i in decision.job_ids)
        workers = decision.num_workers if isinstance(decision, StartGang) else 1
        assert load <= limits.step_positions * workers or len(decision.job_ids) == 1


def test_a_closed_gang_with_a_long_job_does_not_shield_the_others_from_urgent_jobs() -> None:
    gangs = [GangView("closed", A, 1, is_open=False), GangView("low", GangKey("c", 0), 1)]
    running = [held("x", "closed", priority=2), held("y", "low")]
    urgent = queued("0", "b", priority=1)
    assert plan([urgent], running, [], gangs, TWO, NOW) == [
        DrainGang("low", "a job of priority 1 needs its workers")
    ]


def test_the_first_job_that_finds_a_gang_full_gets_the_next_room_in_it() -> None:
    limits = Limits(num_workers=1, zero_stage=0, step_positions=1000.0)
    large, small = queued("large", num_positions=900.0), queued("small")
    gang = GangView("g", A, 1)
    assert plan([large, small], [held("x", "g")], [], [gang], limits, NOW) == []
    assert plan([large, small], [], [], [gang], limits, NOW) == [AdmitJobs("g", ("large",))]


def test_in_a_full_gang_the_least_urgent_job_makes_room_for_a_more_urgent_one() -> None:
    limits = Limits(num_workers=1, zero_stage=0, step_positions=600.0)
    running = [held("old", "g", priority=1), held("new", "g", created_at=NOW)]
    urgent = queued("urgent", priority=2)
    assert plan([urgent], running, [], [GangView("g", A, 1)], limits, NOW) == [
        WithdrawJob("g", "new", "a job of priority 2 needs its place")
    ]
    assert plan([queued("same")], running[1:] * 2, [], [GangView("g", A, 1)], limits, NOW) == []


TRIAL = GangKey("a", 0, is_trial=True)


def test_a_job_that_was_unlucky_twice_goes_on_trial() -> None:
    jobs = [queued("bad", faults=2), queued("0"), queued("1")]
    assert plan(jobs, [], [], [], TWO, NOW) == [
        StartGang(TRIAL, 1, ("bad",)),
        StartGang(A, 1, ("0", "1")),
    ]


def test_on_trial_each_waits_until_the_one_before_it_is_known_to_be_well() -> None:
    unlucky = [queued(f"{i}", faults=2 + i) for i in range(3)]
    one = replace(TWO, num_workers=1)
    assert plan(unlucky, [], [], [], one, NOW) == [StartGang(TRIAL, 1, ("0",))]
    trial = GangView("t", TRIAL, 1)
    on_trial, well = held("x", "t", faults=2), held("x", "t", faults=0)
    assert plan(unlucky, [on_trial], [], [trial], one, NOW) == []
    assert plan(unlucky, [well], [], [trial], one, NOW) == [AdmitJobs("t", ("0",))]
    urgent = [queued("urgent", faults=2, priority=9)]
    assert plan(urgent, [on_trial], [], [trial], one, NOW) == []


def test_free_workers_are_a_trial_each() -> None:
    unlucky = [queued(f"{i}", faults=2) for i in range(3)]
    assert plan(unlucky, [], [], [], TWO, NOW) == [
        StartGang(TRIAL, 1, ("0",)),
        StartGang(TRIAL, 1, ("1",)),
    ]


def test_a_base_that_is_split_waits_for_all_the_workers_it_takes() -> None:
    limits, needs = replace(TWO, num_workers=4), {B: 3}
    large = [queued("large", "b"), queued("later", "b")]
    assert plan(large, [], [], [], limits, NOW, needs) == [StartGang(B, 4, ("large", "later"))]
    busy, idle = GangView("busy", A, 2), GangView("idle", A, 2, idle_s=1.0)
    working = held("x", "busy")
    assert plan(large, [working], [], [busy], limits, NOW, needs) == []
    assert plan(large, [working], [], [busy, idle], limits, NOW, needs) == [
        CloseGang("idle", "others wait for its workers")
    ]
    urgent = [replace(job, priority=1) for job in large]
    assert plan(urgent, [working], [], [busy], limits, NOW, needs) == [
        DrainGang("busy", "a job of priority 1 needs its workers")
    ]


def test_workers_are_kept_for_a_split_base_that_is_more_urgent_or_has_waited_for_a_turn() -> None:
    limits, needs = replace(TWO, num_workers=4, grow_positions=1.0), {B: 3}
    gangs, working = [GangView("g", A, 2, age_s=10.0)], held("x", "g")
    small = queued("small", "c")
    large = queued("large", "b")
    assert StartGang(GangKey("c", 0), 1, ("small",)) in plan(
        [large, small], [working], [], gangs, limits, NOW, needs
    )
    for first in (
        replace(large, priority=1),
        replace(large, created_at=NOW - timedelta(seconds=limits.turn_s)),
    ):
        decisions = plan([first, small], [working], [], gangs, limits, NOW, needs)
        assert not any(isinstance(each, StartGang) for each in decisions)


def test_nobody_makes_room_for_a_base_that_needs_a_larger_cluster() -> None:
    large, small = queued("large", "b", priority=9), queued("small")
    gangs, working = [GangView("g", A, 2, idle_s=0.0)], held("x", "g")
    assert plan([large, small], [working], [], gangs, TWO, NOW, {B: 3}) == [
        AdmitJobs("g", ("small",))
    ]
