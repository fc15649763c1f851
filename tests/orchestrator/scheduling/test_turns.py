from dataclasses import replace
from datetime import timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.domain.job import QueuedJob, Quota
from orchestrator.scheduling.turns import Turns
from tests.orchestrator.scheduling.test_gang_plan import NOW, queued


def serve(turns: Turns) -> list[str]:
    """Take every job that is offered."""
    served = []
    for job in turns:
        served.append(job.id)
        turns.take(job)
    return served


def test_higher_priority_goes_first_and_then_the_oldest() -> None:
    jobs = [queued("urgent", priority=2)] + [
        queued(f"{age}", created_at=NOW - timedelta(seconds=age)) for age in (30, 20, 10)
    ]
    assert serve(Turns(jobs, [], [])) == ["urgent", "30", "20", "10"]


def test_owners_take_turns_whoever_queued_first() -> None:
    flood = [queued(f"ann-{i}") for i in range(6)]
    late = [queued(f"bob-{i}", owner="bob", created_at=NOW) for i in range(2)]
    assert serve(Turns([*flood, *late], [], []))[:4] == ["ann-0", "bob-0", "ann-1", "bob-1"]


def test_what_an_owner_has_running_counts() -> None:
    flood = [queued(f"ann-{i}") for i in range(3)]
    late = [queued(f"bob-{i}", owner="bob", created_at=NOW) for i in range(3)]
    running = [queued(f"running-{i}", gang="g") for i in range(2)]
    assert serve(Turns([*flood, *late], running, []))[:3] == ["bob-0", "bob-1", "ann-0"]


def test_shares_are_the_ratio_of_slots() -> None:
    jobs = [queued(f"ann-{i}") for i in range(30)]
    jobs += [queued(f"bob-{i}", owner="bob") for i in range(30)]
    served = serve(Turns(jobs, [], [Quota("bob", share=3.0)]))[:20]
    assert sum(name.startswith("bob") for name in served) == 15


def test_a_task_has_one_job_at_a_time() -> None:
    jobs = [queued("1", task="colour"), queued("2", task="colour"), queued("3", task="shape")]
    assert serve(Turns(jobs, [], [])) == ["1", "3"]
    assert serve(Turns(jobs, [queued("0", task="colour", gang="g")], [])) == ["3"]


def test_the_jobs_of_one_array_go_side_by_side() -> None:
    jobs = [queued(f"{i}", task="colour", array="array-1") for i in range(3)]
    other = [queued("other", task="colour", array="array-2"), queued("plain", task="colour")]
    assert serve(Turns([*jobs, *other], [], [])) == ["0", "1", "2"]
    assert serve(Turns([*other, *jobs], [], [])) == ["other"]
    assert serve(Turns(jobs, [queued("held", task="colour", gang="g")], [])) == []


def test_what_is_offered_and_not_taken_charges_nobody() -> None:
    jobs = [queued(f"{i}") for i in range(3)]
    turns = Turns(jobs, [], [Quota("ann", max_running=1)])
    offered = list(turns)
    assert [job.id for job in offered] == ["0", "1", "2"]


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 2)), max_size=40),
    st.dictionaries(st.sampled_from("abc"), st.integers(0, 5)),
)
def test_everything_is_served_up_to_the_quotas(
    given_jobs: list[tuple[str, int]], bounds: dict[str, int]
) -> None:
    jobs: list[QueuedJob] = [
        replace(queued(f"{i}"), owner=owner, priority=priority)
        for i, (owner, priority) in enumerate(given_jobs)
    ]
    jobs.sort(key=lambda job: -job.priority)
    quotas = [Quota(owner, bound) for owner, bound in bounds.items()]
    served = serve(Turns(jobs, [], quotas))
    for owner in "abc":
        own = [job.id for job in jobs if job.owner == owner]
        assert [i for i in served if i in own] == own[: bounds.get(owner, len(own))]
