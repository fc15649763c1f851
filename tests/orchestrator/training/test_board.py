"""The board without Ray: who is told of which order, and whose word counts."""

from dataclasses import dataclass, field
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.domain.gang import (
    StageReached,
    TaskCheckpointed,
    TaskFailed,
    TaskFinished,
    TaskNoted,
    TaskOrder,
    TaskProgress,
    TaskWithdrawn,
)
from orchestrator.domain.job import Fault
from orchestrator.training.board import MAX_LOSSES, Board
from orchestrator.training.instructions import Instructions, Withdrawal
from orchestrator.training.losses import MAX_FRUITLESS_RESTARTS, SAVE_PAUSE_S
from tests.orchestrator.training.conftest import make_spec

SILENCE_S = 60.0


@dataclass(frozen=True)
class Anything:
    """Stands for a trained prompt, which the board does not look at."""


@dataclass
class Desk:
    """A board, its clock, and the group that is at work."""

    seconds: float = 0.0
    group: str = ""
    silence_s: float = SILENCE_S
    board: Board = field(init=False)

    def __post_init__(self) -> None:
        self.board = Board(self.silence_s, lambda: self.seconds)

    def start(self, group: str, world_size: int) -> None:
        """A worker group starts, and all its ranks join."""
        assert self.board.start_group() is None
        self.group = group
        for rank in range(world_size):
            assert self.board.join(group, rank, world_size, f"host-{rank}")

    def sync(self, rank: int = 0) -> Instructions:
        told = self.board.sync(self.group, [rank])
        assert told is not None
        return told[0]

    def post(self, *events: Any) -> bool:
        return self.board.post(self.group, events)

    def events(self, kind: type = object) -> list[Any]:
        return [event for event in self.board.take().events if isinstance(event, kind)]


def order(job_id: str = "j", epoch: int = 1, work: float = 1.0, **changes: Any) -> TaskOrder:
    return TaskOrder(job_id, make_spec(**changes), {}, "f" * 64, work, epoch=epoch)


def finished(job_id: str = "j", epoch: int = 1) -> TaskFinished:
    return TaskFinished(job_id, Anything(), epoch)  # type: ignore[arg-type]


def desk_with(*orders: TaskOrder, world_size: int = 1) -> Desk:
    """Orders that every rank has been told of."""
    desk = Desk()
    desk.board.admit(orders)
    desk.start("first", world_size)
    for rank in range(world_size):
        desk.sync(rank)
    return desk


def jobs(told: Instructions) -> list[str]:
    return [each.job_id for each in told.admits]


def test_orders_wait_until_ranks_join_and_are_spread_over_them() -> None:
    desk = Desk()
    desk.board.admit([order("heavy", work=3), order("light"), order("lighter", work=0.5)])
    assert desk.board.take().silent_s == {}
    desk.start("first", 2)
    assert [jobs(desk.sync(rank)) for rank in (0, 1)] == [["heavy"], ["light", "lighter"]]
    assert jobs(desk.sync(0)) == [], "an order is told once"


def test_an_order_that_comes_later_goes_to_the_rank_with_the_least_to_do() -> None:
    desk = desk_with(order("a", work=3), order("b", work=1), world_size=2)
    desk.board.admit([order("c")])
    assert [jobs(desk.sync(rank)) for rank in (0, 1)] == [[], ["c"]]


def test_work_that_is_done_weighs_no_more() -> None:
    desk = desk_with(order("a", work=3), order("b", work=2), world_size=2)
    desk.post(TaskProgress("a", 9, 10, epoch=1))
    desk.board.admit([order("c")])
    assert [jobs(desk.sync(rank)) for rank in (0, 1)] == [["c"], []]


def test_a_data_parallel_order_goes_to_every_rank() -> None:
    desk = Desk()
    desk.board.admit([order(sharding={"data_parallel": True})])
    desk.start("first", 2)
    assert [jobs(desk.sync(rank)) for rank in (0, 1)] == [["j"], ["j"]]


def test_a_silent_rank_is_given_nothing_while_another_lives() -> None:
    desk = desk_with(order("a", work=5), order("b"), world_size=2)
    desk.seconds = 30
    desk.sync(0)
    desk.board.admit([order("c")])
    assert jobs(desk.sync(0)) == ["c"], "though it has less to do, the second rank is silent"


def test_what_waits_for_a_rank_that_fell_silent_goes_to_another() -> None:
    desk = desk_with(order("a", work=5), world_size=2)
    desk.board.admit([order("b")])
    desk.seconds = 30
    assert jobs(desk.sync(0)) == ["b"]
    assert jobs(desk.sync(1)) == []


def test_events_are_handed_over_once_in_order() -> None:
    desk = desk_with(order())
    events = [TaskProgress("j", 1, 2, epoch=1), TaskNoted("j", 1, "a line"), finished()]
    assert desk.post(*events[:2])
    assert desk.post(*events[2:])
    assert desk.events() == events
    assert desk.events() == []


def test_progress_that_nobody_took_does_not_pile_up() -> None:
    desk = desk_with(order("j"), order("k"))
    told = [TaskProgress(job, step, 9, epoch=1) for step in range(5) for job in ("j", "k")]
    desk.post(*told, TaskNoted("j", 1, "a line"), TaskProgress("j", 6, 9, epoch=1))
    steps = [(e.job_id, e.step) for e in desk.events(TaskProgress)]
    assert steps == [("j", 4), ("k", 4), ("j", 6)]
    desk.post(TaskProgress("j", 7, 9, epoch=1))
    assert [e.step for e in desk.events()] == [7]


def test_a_second_end_of_a_task_is_dropped_even_after_the_first_was_taken() -> None:
    desk = desk_with(order("j"), order("k"))
    desk.post(finished("j"))
    desk.events()
    desk.post(TaskFailed("j", "again", 1), finished("j"), TaskFailed("k", "bad", 1))
    assert desk.events() == [TaskFailed("k", "bad", 1)]


def test_a_word_under_another_epoch_is_dropped() -> None:
    desk = desk_with(order(epoch=2))
    assert desk.post(TaskProgress("j", 1, 2, epoch=1), finished(epoch=1), TaskFailed("j", "x", 3))
    assert desk.events() == []


def test_a_new_group_goes_on_from_the_checkpoints_told_here_with_what_is_left() -> None:
    desk = desk_with(order("j"), order("k"), order("l"), world_size=2)
    desk.post(TaskCheckpointed("j", 1, "a", 1), TaskCheckpointed("j", 2, "b", 1), finished("k"))
    for group, world_size in (("second", 1), ("third", 2)):
        desk.start(group, world_size)
        told = [each for rank in range(world_size) for each in desk.sync(rank).admits]
        assert {each.job_id: each.checkpoint for each in told} == {"j": "b", "l": None}


def test_an_old_group_is_refused_everything() -> None:
    desk = desk_with(order())
    desk.start("second", 1)
    desk.sync()
    board = desk.board
    assert not board.post("first", [finished()])
    assert board.sync("first", [0]) is None
    assert not board.fail_rank("first", 0, "broken")
    assert not board.join("first", 0, 1, "host")
    assert board.beat("first", 0, "training", True) is not None
    assert desk.events(TaskFinished | TaskFailed) == []  # type: ignore[arg-type]
    assert desk.post(finished())


def test_between_two_groups_nobody_is_heard() -> None:
    desk = desk_with(order())
    desk.board.start_group()
    assert not desk.post(finished())
    status = desk.board.take()
    assert (status.num_workers, status.stage, status.silent_s) == (0, "starting Ray workers", {})


def test_a_task_that_keeps_leaves_by_its_own_word() -> None:
    desk = desk_with(order())
    for _ in range(2):
        desk.board.withdraw("j", 1, keeps=True)
    assert desk.sync().withdrawals == (Withdrawal("j", 1, True),)
    assert desk.events() == []
    desk.post(TaskCheckpointed("j", 3, "a", 1), TaskWithdrawn("j", 1, 3), finished())
    assert desk.events() == [TaskCheckpointed("j", 3, "a", 1), TaskWithdrawn("j", 1, 3)]


def test_a_task_that_keeps_nothing_is_gone_at_once() -> None:
    desk = desk_with(order())
    desk.post(TaskProgress("j", 7, 9, epoch=1))
    desk.board.withdraw("j", 1, keeps=False)
    desk.post(TaskCheckpointed("j", 8, "a", 1), finished())
    assert desk.events()[1:] == [TaskWithdrawn("j", 1, 7)]
    assert desk.sync().withdrawals == (Withdrawal("j", 1, False),)


def test_a_task_that_no_rank_has_leaves_at_once_and_is_never_told() -> None:
    desk = desk_with()
    desk.board.admit([order()])
    desk.board.withdraw("j", 1, keeps=True)
    desk.board.withdraw("unknown", 4, keeps=True)
    assert desk.events() == [TaskWithdrawn("j", 1, 0), TaskWithdrawn("unknown", 4, 0)]
    assert desk.sync() == Instructions()


def test_a_task_whose_group_ends_while_it_leaves_is_not_placed_again() -> None:
    desk = desk_with(order())
    desk.board.withdraw("j", 1, keeps=True)
    desk.start("second", 1)
    assert desk.events() == [TaskWithdrawn("j", 1, 0)]
    assert desk.sync() == Instructions()


def test_a_sleeper_that_wakes_is_told_to_drop_what_another_rank_has() -> None:
    desk = desk_with(order("j"), order("other", work=0.5), world_size=2)
    desk.seconds = 30
    desk.sync(1)
    desk.board.withdraw("j", 1, keeps=False)
    desk.board.admit([order("j", epoch=2)])
    assert jobs(desk.sync(1)) == ["j"]
    desk.events()
    desk.post(TaskCheckpointed("j", 5, "a", 1), finished("j", 1))
    assert desk.events() == []
    assert desk.sync(0) == Instructions(withdrawals=(Withdrawal("j", 1, False),))


def test_a_newer_epoch_takes_an_orders_place_and_an_older_one_does_not() -> None:
    desk = desk_with(order(epoch=2))
    desk.board.admit([order(epoch=1), order(epoch=2)])
    assert desk.sync() == Instructions()
    desk.board.admit([order(epoch=3)])
    told = desk.sync()
    assert told.withdrawals == (Withdrawal("j", 2, False),)
    assert [each.epoch for each in told.admits] == [3]


def test_a_gang_that_stops_lets_go_what_waits_and_asks_the_ranks_to_leave() -> None:
    desk = desk_with(order("j"))
    desk.board.admit([order("waiting")])
    desk.board.stop()
    desk.board.admit([order("late")])
    assert desk.sync().is_stopping
    assert desk.events() == [TaskWithdrawn("waiting", 1, 0), TaskWithdrawn("late", 1, 0)]
    assert "told to end" in (desk.board.start_group() or "")


def test_an_ended_gang_ends_its_workers_and_starts_none() -> None:
    desk = desk_with(order())
    assert desk.board.lead("handle") is None
    assert desk.board.end("killed") == "handle"
    assert desk.board.beat("first", 0, "training", True) == "killed"
    assert desk.board.sync("first", [0]) is None
    assert not desk.post(finished())
    assert desk.board.start_group() == desk.board.lead("handle") == "killed"


def test_the_stage_is_that_of_the_rank_that_hangs() -> None:
    desk = Desk()
    assert desk.board.take().stage == "starting Ray workers"
    desk.start("first", 2)
    desk.seconds = 5
    assert desk.board.beat("first", 0, "loading", False) is None
    desk.seconds = 12
    assert desk.board.beat("first", 0, "training", True, 0.5, 100.0) is None
    status = desk.board.take()
    assert (status.num_workers, status.stage, status.stage_s) == (2, "starting Ray workers", 12)
    assert status.events == (StageReached(0, "loading"), StageReached(0, "training"))
    desk.board.beat("first", 1, "training", True, 0.7, 50.0)
    status = desk.board.take()
    assert (status.stage, status.stage_s, status.step_s) == (None, 0.0, 0.7)
    assert status.tokens_per_s == 150


def test_a_rank_that_is_silent_for_long_ends_the_others() -> None:
    desk = desk_with(order("a"), order("b"), world_size=2)
    desk.seconds = SILENCE_S - 1
    assert desk.board.beat("first", 0, "training", True) is None
    desk.seconds = SILENCE_S + 1
    reason = desk.board.beat("first", 0, "training", True)
    assert reason == "rank 1 on host-1 was not heard of for 61 s"
    silent_s = desk.board.take().silent_s
    assert sorted(silent_s.values()) == [0.0, SILENCE_S + 1]


def test_a_group_of_which_nobody_is_heard_is_given_up() -> None:
    desk = desk_with(order(), world_size=2)
    desk.seconds = SILENCE_S + 1
    assert desk.board.take().error == "no worker was heard of for 60 s"


def test_a_gang_that_nobody_asks_saves_everything_and_ends() -> None:
    desk = desk_with(order())
    for desk.seconds in (SILENCE_S / 2, SILENCE_S, 2 * SILENCE_S):
        assert not desk.sync().is_stopping
        assert desk.board.take().error is None
    desk.seconds = 3 * SILENCE_S + 1
    assert desk.sync().is_stopping
    desk.post(TaskCheckpointed("j", 3, "a", 1), TaskWithdrawn("j", 1, 3))
    status = desk.board.take()
    assert status.error == "its controller was not heard of for 60 s"
    assert status.events == (TaskCheckpointed("j", 3, "a", 1), TaskWithdrawn("j", 1, 3))
    desk.board.admit([order("late")])
    assert desk.board.start_group() == status.error
    assert not desk.board.join("second", 0, 1, "host")


def test_a_gang_that_nobody_asks_starts_no_workers() -> None:
    desk = Desk()
    desk.seconds = SILENCE_S + 1
    assert desk.board.start_group() == "its controller was not heard of for 60 s"


def test_a_rank_that_cannot_work_gives_its_tasks_back_and_ends_the_gang() -> None:
    desk = desk_with(order("mine"), order("other"), world_size=2)
    desk.board.beat("first", 0, "training", True)
    assert desk.board.fail_rank("first", 0, "no such layer")
    assert desk.events(TaskFailed) == [TaskFailed("mine", "no such layer", 1, Fault.MACHINE)]
    assert desk.board.take().error == "no such layer"
    assert desk.board.start_group() == "no such layer"


def test_a_start_that_fails_gives_all_tasks_back_for_they_would_fare_no_better() -> None:
    desk = desk_with(order("a"), order("b"), world_size=2)
    desk.board.fail_rank("first", 1, "no such layer")
    failures = {event.job_id: event.fault for event in desk.events(TaskFailed)}
    assert failures == {"a": Fault.MACHINE, "b": Fault.MACHINE}


def test_groups_that_come_to_nothing_end_the_gang() -> None:
    desk = Desk()
    desk.board.admit([order()])
    for attempt in range(MAX_FRUITLESS_RESTARTS):
        desk.board.lose("a worker process died")
        desk.start(f"group-{attempt}", 1)
    desk.board.lose("out of memory")
    reason = desk.board.start_group()
    assert reason is not None
    assert "lost 4 times in a row without a step; the last time: out of memory" in reason


def test_groups_that_come_to_something_are_started_without_end() -> None:
    desk = desk_with(order())
    for attempt in range(3 * MAX_FRUITLESS_RESTARTS):
        desk.post(TaskProgress("j", attempt, 100, epoch=1))
        desk.board.lose("a worker process died")
        desk.start(f"group-{attempt}", 1)
        desk.sync()


def test_an_idle_gang_may_lose_its_workers_as_often_as_it_likes() -> None:
    desk = desk_with()
    for attempt in range(3 * MAX_FRUITLESS_RESTARTS):
        desk.board.beat(desk.group, 0, "training", True)
        desk.board.lose("a worker process died")
        desk.start(f"group-{attempt}", 1)


def test_a_group_may_change_its_size_as_often_as_it_likes() -> None:
    desk = desk_with(order())
    for attempt in range(3 * MAX_FRUITLESS_RESTARTS):
        desk.start(f"group-{attempt}", 1 + attempt % 2)


def test_a_job_is_told_that_its_workers_start_again() -> None:
    desk = desk_with(order())
    desk.board.admit([order("waiting")])
    desk.board.lose("a worker process died")
    desk.start("second", 1)
    text = "the gang's workers start again (a worker process died)"
    assert desk.events() == [TaskNoted("j", 1, text)]


def test_ranks_that_are_heard_of_store_their_states_when_they_are_asked() -> None:
    desk = desk_with(world_size=3)
    board = desk.board
    for rank in (0, 1):
        board.beat("first", rank, "training", True)
    number = board.ask_save()
    assert desk.sync(0).save == number
    assert not board.is_saved(number)
    board.sync("first", [0], number)
    board.sync("first", [1], number)
    assert board.is_saved(number), "the third does not train yet"
    another = board.ask_save()
    board.sync("first", [0], another)
    desk.seconds = 30
    board.sync("first", [0], another)
    assert board.is_saved(another), "the second is silent"


@dataclass
class Mine(Desk):
    """Ranks that do as they are told, in rounds: they save, take tasks up, and step. A round in
    which a task of `deadly` comes to its step loses the whole group."""

    deadly: dict[str, int] = field(default_factory=dict)
    world_size: int = 2
    every: int = 10**9
    num_losses: int = 0
    num_done: int = 20
    ranks: dict[int, dict[str, int]] = field(default_factory=dict)
    kept: dict[str, int] = field(default_factory=dict)
    ended: dict[str, Any] = field(default_factory=dict)

    def begin(self) -> bool:
        """False: the gang has given up."""
        if self.board.start_group() is not None:
            return False
        self.num_losses += 1
        self.group, self.ranks = f"group-{self.num_losses}", {}
        for rank in range(self.world_size):
            self.board.join(self.group, rank, self.world_size, "host")
            self.board.beat(self.group, rank, "training", True)
            self.ranks[rank] = {}
        return True

    def work(self, num_rounds: int = 1000) -> None:
        """Go round until all is over, or for so long."""
        saved = dict.fromkeys(range(self.world_size), 0)
        self.begin()
        for _ in range(num_rounds):
            self.seconds += 1
            for rank in range(self.world_size):
                if not self.round(rank, saved):
                    self.board.lose("out of memory")
                    saved = dict.fromkeys(saved, 0)
                    if not self.begin():
                        return
                    break
            for event in self.events(TaskFinished | TaskFailed):  # type: ignore[arg-type]
                assert event.job_id not in self.ended
                self.ended[event.job_id] = event
            if not self.board._tasks:
                return

    def round(self, rank: int, saved: dict[int, int]) -> bool:
        """False: it ended in the death of the group."""
        (told,) = self.board.sync(self.group, [rank], saved[rank]) or [Instructions()]
        mine = self.ranks[rank]
        if told.save > saved[rank] or int(self.seconds) % self.every == 0:
            saved[rank] = told.save
            for job, step in mine.items():
                self.kept[job] = step
                self.post(TaskCheckpointed(job, step, f"{step}", 1))
        mine |= {each.job_id: int(each.checkpoint or 0) for each in told.admits}
        steps = {job: step + 1 for job, step in mine.items()}
        if any(step == self.deadly.get(job) for job, step in steps.items()):
            return False
        self.post(*[TaskProgress(j, s, self.num_done, epoch=1) for j, s in steps.items()])
        over = [job for job, step in steps.items() if step >= self.num_done]
        self.post(*[finished(job) for job in over])
        self.ranks[rank] = {job: step for job, step in steps.items() if job not in over}
        return True


def check_outcome(mine: Mine, good: set[str]) -> None:
    assert set(mine.ended) == good | set(mine.deadly)
    for job, event in mine.ended.items():
        if job in good:
            assert isinstance(event, TaskFinished)
        else:
            assert event.fault == Fault.MACHINE
            assert event.reason.startswith("its worker died 3 times while it trained there")
            assert event.reason.endswith("the last time: out of memory")


def test_a_task_that_ends_its_workers_leaves_and_the_others_never_do() -> None:
    for step in (1, 2, 7, 19):
        mine = Mine(deadly={"poison": step})
        good = {f"good-{i}" for i in range(5)}
        mine.board.admit([order("poison"), *map(order, sorted(good))])
        mine.work()
        check_outcome(mine, good)
        assert mine.num_losses == 1 + MAX_LOSSES


def test_a_task_that_comes_to_end_workers_of_others_pays_alone() -> None:
    mine = Mine(num_done=200, deadly={"poison": 1})
    good = {f"good-{i}" for i in range(4)}
    mine.board.admit(map(order, sorted(good)))  # type: ignore[arg-type]
    mine.work(num_rounds=50)
    mine.board.admit([order("poison")])
    mine.work()
    check_outcome(mine, good)


@settings(max_examples=60, deadline=None)
@given(
    st.permutations(["poison", *(f"good-{i}" for i in range(4))]),
    st.integers(1, 19),
    st.integers(1, 3),
    st.integers(0, 4),
    st.integers(0, 30),
    st.sampled_from([3, 10**9]),
)
def test_whenever_a_task_ends_its_workers_the_innocent_finish(
    jobs: list[str], step: int, world_size: int, num_late: int, num_rounds: int, every: int
) -> None:
    mine = Mine(deadly={"poison": step}, world_size=world_size, every=every)
    late = len(jobs) - num_late
    mine.board.admit(map(order, jobs[:late]))  # type: ignore[arg-type]
    mine.work(num_rounds)
    mine.board.admit(map(order, jobs[late:]))  # type: ignore[arg-type]
    mine.work()
    check_outcome(mine, {job for job in jobs if job.startswith("good")})


def test_a_suspect_is_tried_alone_when_the_others_are_saved() -> None:
    desk = desk_with(order("old"))
    desk.post(TaskProgress("old", 9, 99, epoch=1))
    desk.board.admit([order("new"), order("newer")])
    desk.sync()
    desk.board.lose("a worker process died")
    desk.start("second", 1)
    desk.board.beat("second", 0, "training", True)
    assert jobs(desk.sync()) == ["old"]
    assert jobs(desk.sync()) == []
    desk.post(TaskProgress("old", 1, 99, epoch=1))
    told = desk.sync()
    assert (jobs(told), told.save) == ([], 1), "the first step after a loss is to be saved"
    (told,) = desk.board.sync("second", [0], 1) or []
    assert jobs(told) == ["new"]
    assert jobs(desk.sync()) == []
    desk.post(TaskProgress("new", 1, 99, epoch=1))
    assert jobs(desk.sync()) == ["newer"]


def test_a_suspect_that_all_ranks_train_goes_to_all_of_them_at_once() -> None:
    desk = desk_with(order(sharding={"data_parallel": True}), world_size=2)
    desk.board.lose("a worker process died")
    desk.start("second", 2)
    told = desk.board.sync("second", [0, 1])
    assert [jobs(each) for each in told or []] == [["j"], ["j"]]


def test_after_a_loss_all_are_saved_at_once_and_then_more_and_more_seldom() -> None:
    desk = desk_with(order())
    desk.post(TaskProgress("j", 1, 99, epoch=1))
    assert desk.sync().save == 0
    desk.board.lose("a worker process died")
    desk.start("second", 1)
    saves = []
    for second in range(40):
        desk.seconds = second
        desk.post(TaskProgress("j", 1, 99, epoch=1))
        desk.sync()
        desk.post(TaskProgress("j", 1 + second, 99, epoch=1))
        saves.append(desk.sync().save)
    assert [saves.index(number) for number in (1, 2, 3, 4)] == [
        0,
        SAVE_PAUSE_S,
        3 * SAVE_PAUSE_S,
        7 * SAVE_PAUSE_S,
    ]


def test_a_group_that_changes_its_size_makes_nobody_suspect() -> None:
    desk = desk_with(order("a"), order("b"))
    for size in range(1, 3 * MAX_LOSSES):
        desk.start(f"group-{size}", 1)
        assert jobs(desk.sync()) == ["a", "b"]


JOBS = st.sampled_from(["a", "b", "c"])
ACTS = st.one_of(
    st.tuples(st.just("admit"), JOBS),
    st.tuples(st.just("withdraw"), JOBS, st.booleans()),
    st.tuples(st.just("restart"), st.integers(1, 3)),
    st.tuples(st.just("sync"), st.integers(0, 2)),
    st.tuples(st.just("end"), st.integers(0, 2), JOBS),
    st.tuples(st.just("checkpoint"), st.integers(0, 2), JOBS),
    st.tuples(st.just("sleep"), st.integers(0, 2)),
)


@dataclass
class Ranks(Desk):
    """A board, and ranks that do as they are told; sleepers of old groups talk on."""

    world_size: int = 0
    num_groups: int = 0
    epochs: dict[str, int] = field(default_factory=dict)
    #: Who trains what: (group, rank) -> job id -> (epoch, checkpoint).
    trains: dict[tuple[str, int], dict[str, int]] = field(default_factory=dict)
    open: set[tuple[str, int]] = field(default_factory=set)
    checkpoints: dict[tuple[str, int], str] = field(default_factory=dict)

    def act(self, name: str, *arguments: Any) -> None:
        getattr(self, f"on_{name}")(*arguments)
        self.settle()

    def on_admit(self, job: str) -> None:
        self.epochs[job] = self.epochs.get(job, 0) + 1
        self.open -= {key for key in self.open if key[0] == job}
        self.open.add((job, self.epochs[job]))
        self.board.admit([order(job, self.epochs[job])])

    def on_withdraw(self, job: str, keeps: bool) -> None:
        self.board.withdraw(job, self.epochs.get(job, 0), keeps)

    def on_restart(self, world_size: int) -> None:
        self.num_groups, self.world_size = self.num_groups + 1, world_size
        self.start(f"group-{self.num_groups}", world_size)
        for rank in range(world_size):
            self.trains[self.group, rank] = {}

    def on_sync(self, rank: int) -> None:
        if rank >= self.world_size:
            return
        told, mine = self.sync(rank), self.trains[self.group, rank]
        for each in told.withdrawals:
            if mine.get(each.job_id) == each.epoch:
                del mine[each.job_id]
                self.post(TaskWithdrawn(each.job_id, each.epoch, 0))
        for each in told.admits:
            assert each.job_id not in mine
            assert (each.job_id, each.epoch) in self.open
            assert each.checkpoint == self.checkpoints.get((each.job_id, each.epoch))
            mine[each.job_id] = each.epoch

    def on_sleep(self, rank: int) -> None:
        self.seconds += 20

    def on_end(self, rank: int, job: str) -> None:
        for (group, each), mine in self.trains.items():
            if each == rank and job in mine:
                self.board.post(group, [finished(job, mine[job])])

    def on_checkpoint(self, rank: int, job: str) -> None:
        for (group, each), mine in self.trains.items():
            if each == rank and job in mine:
                key = (job, mine[job])
                event = TaskCheckpointed(job, 1, f"{group}", mine[job])
                self.board.post(group, [event])
                if group == self.group and key in self.board._tasks:
                    self.checkpoints[key] = group

    def settle(self) -> None:
        """Take the events; whatever got through is of an open order, and closes it at most once."""
        for event in self.events(TaskFinished | TaskWithdrawn):  # type: ignore[arg-type]
            key = (event.job_id, event.epoch)
            if isinstance(event, TaskFinished):
                assert key in self.open
            self.open.discard(key)
        held = set(self.board._tasks)
        assert held == self.open
        ranks = {key: task.rank for key, task in self.board._tasks.items()}
        if self.group:
            assert all(rank in range(self.world_size) for rank in ranks.values())
        for (group, rank), mine in self.trains.items():
            for job, epoch in mine.items():
                if group == self.group and (job, epoch) in held:
                    assert ranks[job, epoch] == rank


@settings(max_examples=60, deadline=None)
@given(st.lists(ACTS, max_size=25))
def test_every_order_is_on_one_rank_of_the_present_group_or_over(acts: list[Any]) -> None:
    ranks = Ranks(silence_s=1e9)
    for act in acts:
        ranks.act(*act)
