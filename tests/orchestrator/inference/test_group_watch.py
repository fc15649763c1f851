import pytest

from orchestrator.domain.errors import TuttiError
from orchestrator.inference.group_watch import GroupLost, GroupWatch
from orchestrator.inference.shard_worker import SplitPlan
from orchestrator.inference.split_worker import ANSWERING, Pulse


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def watch(clock: Clock) -> GroupWatch:
    return GroupWatch(SplitPlan(1, 2, start_timeout_s=60, silence_s=30), 2, clock)


def test_a_start_that_hangs_names_the_worker_and_the_stage(watch: GroupWatch, clock: Clock) -> None:
    watch.hear(0, Pulse("meeting the other workers"))
    watch.hear(1, Pulse("importing torch and deepspeed"))
    clock.now_s = 40
    watch.hear(0, Pulse("loading the base"))
    watch.check()
    clock.now_s = 61
    with pytest.raises(TuttiError, match="worker 1 of 2 has been importing torch and deepspeed"):
        watch.check()


def test_a_process_that_never_answers_is_said_not_to_have_started(
    watch: GroupWatch, clock: Clock
) -> None:
    clock.now_s = 61
    with pytest.raises(TuttiError, match="has been starting its process for 61 s, at most 60"):
        watch.check()


def test_a_worker_that_is_not_heard_of_loses_the_group(watch: GroupWatch, clock: Clock) -> None:
    for second in range(0, 100, 10):
        clock.now_s = second
        for rank in (0, 1):
            watch.hear(rank, Pulse(ANSWERING, second))
        watch.check()
    clock.now_s += 31
    watch.hear(0, Pulse(ANSWERING, 91))
    with pytest.raises(GroupLost, match="worker 1 of 2 was not heard of for 31 s"):
        watch.check()


def test_a_worker_that_lives_and_makes_no_pass_loses_it_later(
    watch: GroupWatch, clock: Clock
) -> None:
    for second in range(0, 61, 10):
        clock.now_s = second
        for rank in (0, 1):
            watch.hear(rank, Pulse(ANSWERING, 7))
        watch.check()
    clock.now_s = 61
    with pytest.raises(GroupLost, match="worker 0 of 2 has made no pass for 61 s"):
        watch.check()
