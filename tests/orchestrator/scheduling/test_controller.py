from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from orchestrator.domain.digest import digest_json
from orchestrator.domain.errors import ClusterUnavailable, IntegrityError, TuttiError
from orchestrator.domain.job import Fault, Job, JobOptions, JobState, Lease
from orchestrator.registry.batch_book import BatchBook
from orchestrator.registry.database import Database
from orchestrator.registry.engine import transaction
from orchestrator.registry.errors import DatabaseUnavailable
from orchestrator.registry.gang_book import GangBook
from orchestrator.registry.job_queue import JobQueue
from orchestrator.registry.leadership import Leadership
from orchestrator.registry.prompt_registry import PromptRegistry
from orchestrator.scheduling.controller import CALM_STEP_S, STEP_S, STOPPED, Controller
from orchestrator.scheduling.gang_keeper import DATABASE_AWAY
from orchestrator.scheduling.gang_plan import Limits
from orchestrator.scheduling.gang_starter import MAX_LAUNCH_FAILURES
from orchestrator.scheduling.shard_plan import ShardPlan
from tests.orchestrator.registry.batch_plans import make_plan
from tests.orchestrator.scheduling.conftest import BASE, LEASE_S, Clock, MemoryLauncher

Submit = Callable[..., Job]
MakeController = Callable[..., Controller]
OTHER = "f" * 64


def run(controller: Controller, clock: Clock, steps: int = 2) -> None:
    """Let some time pass, with a heartbeat in each step."""
    for _ in range(steps):
        clock.now += 2.0
        controller.step()


# Gangs and their jobs


def test_a_finished_task_is_registered_and_promoted(
    controller: Controller,
    submit: Submit,
    launcher: MemoryLauncher,
    queue: JobQueue,
    registry: PromptRegistry,
    clock: Clock,
) -> None:
    job = submit("colour")
    run(controller, clock)
    assert queue.get(job.id).state == JobState.RUNNING
    launcher.gang.train()
    run(controller, clock, 1)
    done = queue.get(job.id)
    assert (done.state, done.version, done.error) == (JobState.SUCCEEDED, 1, None)
    (version,) = registry.list("colour")
    assert version.aliases == ("production",)
    assert version.lineage.job == job.id
    assert controller.is_idle
    (move,) = registry.history("colour")
    assert (move.actor, move.gate) == ("ann", "accuracy >= 0.5")
    assert (controller.counters.admissions, controller.counters.completions) == (1, 1)


def test_the_orders_hold_everything_the_workers_need(
    controller: Controller, submit: Submit, launcher: MemoryLauncher, queue: JobQueue, clock: Clock
) -> None:
    jobs = [submit(task) for task in ("a", "b", "c")]
    run(controller, clock, 1)
    order = launcher.gang.order
    assert (order.max_length, order.code_version, order.zero_stage) == (256, "0.1.0", 0)
    assert (order.min_workers, order.max_workers, order.shares_rows) == (1, 2, False)
    assert order.sharding == "2 could hold it whole"
    assert {each.job_id for each in launcher.gang.orders} == {job.id for job in jobs}
    assert all(each.datasets == jobs[0].submission.datasets for each in launcher.gang.orders)
    assert {each.epoch for each in launcher.gang.orders} == {1}
    assert {queue.get(job.id).gang for job in jobs} == {order.name}


def test_a_job_that_comes_later_joins_the_gang_that_is_up(
    controller: Controller, submit: Submit, launcher: MemoryLauncher, queue: JobQueue, clock: Clock
) -> None:
    submit("first")
    run(controller, clock)
    late = submit("late")
    run(controller, clock)
    assert len(launcher.gangs) == 1
    assert launcher.gang.tasks == ["first", "late"]
    assert queue.get(late.id).state == JobState.RUNNING


def test_a_controller_looks_less_often_once_it_has_had_nothing_to_start_for_a_while(
    controller: Controller, submit: Submit, clock: Clock
) -> None:
    run(controller, clock, 16)
    assert controller.pause_s == CALM_STEP_S
    submit("first")
    run(controller, clock, 1)
    assert controller.pause_s == STEP_S
    run(controller, clock, 10)
    assert controller.pause_s == STEP_S, "its first step is waited for"
    run(controller, clock, 10)
    assert controller.pause_s == CALM_STEP_S


def test_a_gang_without_jobs_leaves_at_once_when_a_batch_run_is_at_work(
    controller: Controller,
    submit: Submit,
    launcher: MemoryLauncher,
    database: Database,
    clock: Clock,
) -> None:
    batches, run_id = BatchBook(database), "1" * 32
    submit("colour")
    run(controller, clock)
    lease = batches.create(run_id, make_plan(), "in.jsonl", "ann", "host:9:9", 60)
    run(controller, clock)
    assert launcher.gang.is_running, "it has a job"
    batches.release(lease, 1.0)
    launcher.gang.train()
    run(controller, clock)
    assert launcher.gang.is_running, "nobody works on the run"
    batches.lead(run_id, "host:9:9", 60, lambda holder: False)
    run(controller, clock, 1)
    assert not launcher.gang.is_running


def test_a_base_that_must_be_split_takes_all_workers(
    make_controller: MakeController, submit: Submit, launcher: MemoryLauncher, clock: Clock
) -> None:
    asked: list[object] = []

    def shard(*question: object) -> ShardPlan:
        asked.append(question)
        return ShardPlan(3, "cpu", "it is large")

    controller = make_controller(shard=shard, limits=Limits(num_workers=4))
    submit("a")
    run(controller, clock, 1)
    assert asked == [(BASE, None, 1)]
    order = launcher.gang.order
    assert (order.zero_stage, order.offload, order.sharding) == (3, "cpu", "it is large")
    assert order.max_workers == 4


def test_a_split_base_waits_for_the_workers_it_takes_and_never_goes_on_with_fewer(
    make_controller: MakeController,
    submit: Submit,
    launcher: MemoryLauncher,
    queue: JobQueue,
    clock: Clock,
) -> None:
    def shard(fingerprint: str, *question: object) -> ShardPlan:
        if fingerprint == BASE:
            return ShardPlan(0, "none", "it is small")
        return ShardPlan(3, "none", "it is large", min_workers=3)

    controller = make_controller(shard=shard, limits=Limits(num_workers=4, grow_positions=1))
    for name in ("a", "b"):
        submit(name)
    run(controller, clock, 1)
    large = submit("large", OTHER)
    run(controller, clock, 1)
    assert len(launcher.gangs) == 1
    assert queue.get(large.id).state == JobState.QUEUED
    assert "it takes 3 workers, and 2 are free" in queue.log(large.id)[-1].text
    launcher.gang.train()
    clock.now += 60.0
    run(controller, clock)
    clock.now += 60.0
    run(controller, clock)
    orders = [gang.order for gang in launcher.gangs]
    assert [order.min_workers for order in orders] == [1, 3]


def test_a_base_that_fits_nowhere_fails_its_jobs_and_no_others(
    make_controller: MakeController,
    submit: Submit,
    launcher: MemoryLauncher,
    queue: JobQueue,
    clock: Clock,
) -> None:
    def shard(fingerprint: str, zero_stage: int | None, num_whole: int) -> ShardPlan:
        if fingerprint != BASE:
            raise TuttiError("28 GB do not fit", "Use more machines.")
        return ShardPlan(0, "none", "")

    controller = make_controller(shard=shard)
    large = submit("large", digest_json("large"))
    run(controller, clock)
    small = submit("small")
    run(controller, clock)
    assert queue.get(large.id).state == JobState.FAILED
    assert queue.get(large.id).error == "28 GB do not fit\n  Use more machines."
    assert launcher.gang.tasks == ["small"]
    assert queue.get(small.id).state == JobState.RUNNING


def test_a_base_that_was_altered_fails_its_jobs_and_lets_others_run(
    make_controller: MakeController, submit: Submit, queue: JobQueue, clock: Clock
) -> None:
    def max_length(fingerprint: str) -> int:
        if fingerprint == OTHER:
            raise IntegrityError("the base model was altered", "Add it again.")
        return 256

    broken, good = submit("broken", base=OTHER), submit("good")
    run(make_controller(max_length=max_length), clock)
    assert "the base model was altered" in (queue.get(broken.id).error or "")
    assert queue.get(good.id).state == JobState.RUNNING


def test_a_failed_task_fails_alone(
    controller: Controller, submit: Submit, launcher: MemoryLauncher, queue: JobQueue, clock: Clock
) -> None:
    good, bad = submit("good"), submit("bad")
    run(controller, clock)
    launcher.gang.fail("bad", "the loss is not a finite number at step 3")
    launcher.gang.train("good")
    run(controller, clock)
    assert queue.get(good.id).state == JobState.SUCCEEDED
    failed = queue.get(bad.id)
    assert (failed.state, failed.error) == (
        JobState.FAILED,
        "the loss is not a finite number at step 3",
    )
    (attempt,) = queue.attempts(bad.id)
    assert (attempt.outcome, attempt.fault) == ("failed", Fault.USER)


@pytest.mark.parametrize(
    ("accuracy", "lineage", "reason"),
    [
        (float("nan"), {}, "the metric 'accuracy' is nan"),
        (0.75, {"base_fingerprint": "e" * 64}, "but the result is"),
    ],
)
def test_a_result_that_cannot_be_a_version_fails_its_job_alone(
    controller: Controller,
    submit: Submit,
    launcher: MemoryLauncher,
    queue: JobQueue,
    clock: Clock,
    accuracy: float,
    lineage: dict[str, str],
    reason: str,
) -> None:
    bad, good = submit("bad"), submit("good")
    run(controller, clock)
    launcher.gang.train("bad", accuracy=accuracy, **lineage)
    launcher.gang.train("good")
    run(controller, clock)
    assert queue.get(bad.id).state == JobState.FAILED
    assert reason in (queue.get(bad.id).error or "")
    assert queue.get(good.id).state == JobState.SUCCEEDED


def test_progress_is_written_with_the_heartbeat_and_at_the_end(
    controller: Controller, submit: Submit, launcher: MemoryLauncher, queue: JobQueue, clock: Clock
) -> None:
    job = submit("colour")
    run(controller, clock)
    launcher.gang.progress("colour", 7)
    controller.step()
    assert queue.get(job.id).progress == {}
    run(controller, clock, 1)
    told = queue.get(job.id).progress
    assert (told["step"], told["num_steps"], told["loss"], told["best"]) == (7, 100, 0.5, 0.25)
    launcher.gang.progress("colour", 9)
    launcher.gang.train()
    controller.step()
    assert queue.get(job.id).progress["step"] == 9


def test_a_job_over_its_time_limit_fails_and_leaves(
    controller: Controller, submit: Submit, launcher: MemoryLauncher, queue: JobQueue, clock: Clock
) -> None:
    job = submit("colour", options=JobOptions(time_limit_s=60.0))
    run(controller, clock)
    launcher.gang.progress("colour", 7, seconds=59.0)
    run(controller, clock, 1)
    assert queue.get(job.id).state == JobState.RUNNING
    launcher.gang.progress("colour", 8, seconds=61.0)
    run(controller, clock, 1)
    failed = queue.get(job.id)
    assert (failed.error or "").startswith(
        "its time limit of 60 s is over, at step 8 of 100; `tutti"
    )
    assert launcher.gang.withdrawn == [(job.id, 1, False)]


def test_two_specs_of_a_task_run_one_after_the_other(
    controller: Controller,
    submit: Submit,
    launcher: MemoryLauncher,
    queue: JobQueue,
    registry: PromptRegistry,
    clock: Clock,
) -> None:
    first, second = (submit("colour", training={"seed": seed}) for seed in (1, 2))
    run(controller, clock)
    assert [each.job_id for each in launcher.gang.orders] == [first.id]
    launcher.gang.train()
    run(controller, clock)
    assert [each.job_id for each in launcher.gang.orders] == [first.id, second.id]
    launcher.gang.train("colour")
    run(controller, clock)
    assert [version.number for version in registry.list("colour")] == [2, 1]
    assert queue.get(second.id).version == 2


# Checkpoints


def test_a_checkpoint_is_written_down_and_the_one_before_thrown_away(
    controller: Controller,
    submit: Submit,
    launcher: MemoryLauncher,
    queue: JobQueue,
    discarded: list[str],
    clock: Clock,
) -> None:
    job = submit("colour")
    run(controller, clock)
    first = launcher.gang.checkpoint("colour", 5)
    second = launcher.gang.checkpoint("colour", 9)
    controller.step()
    assert queue.get(job.id).checkpoint == second
    assert discarded == [first]
    launcher.gang.train()
    controller.step()
    assert discarded == [first, second]


def test_the_next_attempt_goes_on_from_the_checkpoint(
    controller: Controller,
    submit: Submit,
    launcher: MemoryLauncher,
    discarded: list[str],
    clock: Clock,
) -> None:
    submit("colour")
    run(controller, clock)
    kept = launcher.gang.checkpoint("colour", 5)
    launcher.gang.end("worker 1 was killed")
    run(controller, clock)
    assert launcher.gang.order_of("colour").checkpoint == kept
    assert discarded == []
    newer = launcher.gang.checkpoint("colour", 8)
    launcher.gang.train()
    controller.step()
    assert discarded == [kept, newer]


def test_a_failed_jobs_checkpoint_stays_for_a_retry(
    controller: Controller,
    submit: Submit,
    launcher: MemoryLauncher,
    queue: JobQueue,
    discarded: list[str],
    clock: Clock,
) -> None:
    job = submit("colour")
    run(controller, clock)
    kept = launcher.gang.checkpoint("colour", 5)
    launcher.gang.fail("colour", "NaN")
    run(controller, clock)
    queue.retry(job.id, "ann")
    run(controller, clock)
    assert launcher.gang.order_of("colour").checkpoint == kept
    assert discarded == []


def test_a_checkpoint_that_is_written_down_already_is_not_thrown_away_as_stale(
    controller: Controller,
    submit: Submit,
    launcher: MemoryLauncher,
    queue: JobQueue,
    discarded: list[str],
    clock: Clock,
) -> None:
    job = submit("colour")
    run(controller, clock)
    written = launcher.gang.checkpoint("colour", 5)
    controller.step()
    queue.cancel(job.id, "ann")
    launcher.gang.checkpoint("colour", 5)  # told again: the answer to its writing was lost
    late = launcher.gang.checkpoint("colour", 9)
    run(controller, clock)
    assert queue.get(job.id).checkpoint == written
    assert discarded == [late]


def test_an_artifact_that_cannot_be_removed_stops_nobody(
    make_controller: MakeController, submit: Submit, launcher: MemoryLauncher, clock: Clock
) -> None:
    def refuse(digest: str) -> None:
        raise TuttiError("the store is read-only")

    controller = make_controller(discard=refuse)
    submit("colour")
    run(controller, clock)
    launcher.gang.checkpoint("colour", 5)
    launcher.gang.train()
    run(controller, clock)
    assert controller.counters.completions == 1


# Gangs that end


def test_a_gang_that_dies_gives_its_jobs_back_and_they_run_again(
    controller: Controller, submit: Submit, launcher: MemoryLauncher, queue: JobQueue, clock: Clock
) -> None:
    done, lost = submit("done"), submit("lost")
    run(controller, clock)
    launcher.gang.train("done")
    launcher.gang.end("worker 1 was killed")
    run(controller, clock)
    assert queue.get(done.id).state == JobState.SUCCEEDED
    assert queue.get(lost.id).state == JobState.RUNNING
    assert len(launcher.gangs) == 2
    assert launcher.gang.tasks == ["lost"]
    first, _ = queue.attempts(lost.id)
    assert (first.outcome, first.cause, first.fault) == (
        "released",
        "worker 1 was killed",
        Fault.MACHINE,
    )


def test_a_job_whose_gangs_keep_dying_fails_with_the_cause(
    controller: Controller, submit: Submit, launcher: MemoryLauncher, queue: JobQueue, clock: Clock
) -> None:
    job = submit("colour", options=JobOptions(max_attempts=2))
    run(controller, clock)
    launcher.gang.end("out of memory 1")
    run(controller, clock)
    launcher.gang.end("out of memory 2")
    run(controller, clock)
    failed = queue.get(job.id)
    assert failed.state == JobState.FAILED
    assert failed.error == "out of memory 2 (attempt 2 of 2)"
    assert len(launcher.gangs) == 2


def test_a_gang_that_ends_without_a_word_is_a_failed_attempt(
    controller: Controller, submit: Submit, launcher: MemoryLauncher, queue: JobQueue, clock: Clock
) -> None:
    job = submit("colour")
    run(controller, clock)
    launcher.gang.end()
    controller.step()
    assert queue.attempts(job.id)[0].cause == "the gang ended before the job did"


def test_a_start_that_hangs_is_ended_and_says_in_which_stage(
    make_controller: MakeController,
    submit: Submit,
    launcher: MemoryLauncher,
    queue: JobQueue,
    clock: Clock,
) -> None:
    controller = make_controller(start_timeout_s=100.0)
    job = submit("colour")
    run(controller, clock)
    launcher.gang.stage, launcher.gang.stage_s = "loading the base", 101.0
    hung = launcher.gang
    run(controller, clock)
    assert hung.is_killed
    assert queue.attempts(job.id)[0].cause == "hung for 101 s in the stage: loading the base"


def test_a_gang_without_work_ends_after_a_while(
    controller: Controller, submit: Submit, launcher: MemoryLauncher, book: GangBook, clock: Clock
) -> None:
    submit("colour")
    run(controller, clock)
    launcher.gang.train()
    run(controller, clock)
    assert controller.num_gangs == 1
    clock.now += 100.0
    run(controller, clock, 3)
    assert controller.num_gangs == 0
    (record,) = book.list(include_ended=True)
    assert record.ended_at is not None
    assert record.error is None


def test_a_gang_makes_room_for_jobs_on_another_base(
    controller: Controller, submit: Submit, launcher: MemoryLauncher, queue: JobQueue, clock: Clock
) -> None:
    submit("a"), submit("b")
    run(controller, clock)
    other = submit("c", base=OTHER)
    run(controller, clock)
    assert len(launcher.gangs) == 1
    launcher.gang.train()
    run(controller, clock, 4)
    assert launcher.gang.order.base_fingerprint == OTHER
    assert queue.get(other.id).state == JobState.RUNNING


def test_an_urgent_job_drains_a_gang_and_costs_its_jobs_no_attempt(
    controller: Controller, submit: Submit, launcher: MemoryLauncher, queue: JobQueue, clock: Clock
) -> None:
    low = [submit("a"), submit("b")]
    run(controller, clock)
    kept = launcher.gang.checkpoint("a", 5)
    urgent = submit("c", base=OTHER, options=JobOptions(priority=5))
    run(controller, clock, 4)
    assert [gang.order.base_fingerprint for gang in launcher.gangs] == [BASE, OTHER, BASE]
    assert queue.get(urgent.id).state == JobState.RUNNING
    assert all(queue.get(job.id).faults == 0 for job in low)
    assert queue.get(low[0].id).checkpoint == kept
    attempt = queue.attempts(low[0].id)[0]
    assert attempt.fault == Fault.PREEMPTION
    assert attempt.cause == "a job of priority 5 needs its workers"


def test_a_gang_that_a_user_drains_gives_its_jobs_back(
    controller: Controller,
    submit: Submit,
    launcher: MemoryLauncher,
    queue: JobQueue,
    book: GangBook,
    clock: Clock,
) -> None:
    job = submit("colour")
    run(controller, clock)
    drained = launcher.gang
    book.ask_drain(drained.order.name)
    run(controller, clock, 4)
    assert not drained.is_running
    assert queue.attempts(job.id)[0].cause == "the gang was drained"
    assert launcher.gang is not drained
    assert queue.get(job.id).state == JobState.RUNNING


def test_stop_puts_unfinished_jobs_back(
    controller: Controller, submit: Submit, launcher: MemoryLauncher, queue: JobQueue, clock: Clock
) -> None:
    done, lost = submit("done"), submit("lost")
    run(controller, clock)
    launcher.gang.train("done")
    controller.stop()
    assert not launcher.gang.is_running
    assert controller.is_idle
    assert queue.get(done.id).state == JobState.SUCCEEDED
    assert queue.get(lost.id).state == JobState.QUEUED
    (attempt,) = queue.attempts(lost.id)
    assert (attempt.cause, attempt.fault) == (STOPPED, Fault.PREEMPTION)


def test_being_stopped_costs_no_attempt(
    make_controller: MakeController, submit: Submit, queue: JobQueue, clock: Clock
) -> None:
    job = submit("colour", options=JobOptions(max_attempts=1))
    for _ in range(3):
        stopped = make_controller()
        run(stopped, clock)
        stopped.stop()
    assert (queue.get(job.id).state, queue.get(job.id).faults) == (JobState.QUEUED, 0)


def test_a_gang_that_found_no_workers_is_not_its_jobs_fault(
    make_controller: MakeController,
    submit: Submit,
    launcher: MemoryLauncher,
    queue: JobQueue,
    clock: Clock,
) -> None:
    job = submit("colour", options=JobOptions(max_attempts=1))
    controller = make_controller(start_timeout_s=100.0)
    run(controller, clock, 1)
    launcher.gang.has_joined = False
    launcher.gang.stage, launcher.gang.stage_s = "starting Ray workers", 101.0
    run(controller, clock)
    assert queue.get(job.id).state in (JobState.ADMITTED, JobState.RUNNING)
    assert queue.attempts(job.id)[0].fault == Fault.PREEMPTION


def test_what_the_machine_did_to_one_task_is_tried_again(
    controller: Controller, submit: Submit, launcher: MemoryLauncher, queue: JobQueue, clock: Clock
) -> None:
    job, other = submit("colour"), submit("other")
    run(controller, clock)
    launcher.gang.fail("colour", "the store was away", Fault.MACHINE)
    run(controller, clock)
    assert queue.get(job.id).state == JobState.RUNNING
    assert [each.cause for each in queue.attempts(job.id)] == ["the store was away", None]
    assert len(queue.attempts(other.id)) == 1


def test_a_result_that_cannot_be_written_costs_its_job_an_attempt_and_nobody_else(
    make_controller: MakeController,
    submit: Submit,
    launcher: MemoryLauncher,
    queue: JobQueue,
    registry: PromptRegistry,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    complete = registry.complete

    def broken(lease: Lease, *rest: Any) -> Any:
        if lease.job_id == bad.id:
            raise RuntimeError("a bug")
        return complete(lease, *rest)

    monkeypatch.setattr(registry, "complete", broken)
    controller = make_controller()
    bad, good = submit("bad", options=JobOptions(max_attempts=1)), submit("good")
    run(controller, clock)
    launcher.gang.train("bad", "good")
    run(controller, clock)
    assert queue.get(bad.id).error == "RuntimeError: a bug (attempt 1 of 1)"
    assert queue.get(good.id).state == JobState.SUCCEEDED


def test_a_less_urgent_job_makes_room_in_its_gang(
    make_controller: MakeController,
    submit: Submit,
    launcher: MemoryLauncher,
    queue: JobQueue,
    clock: Clock,
) -> None:
    limits = Limits(num_workers=1, zero_stage=0, step_positions=100.0)
    controller = make_controller(limits=limits)
    low = submit("low")
    run(controller, clock)
    urgent = submit("urgent", options=JobOptions(priority=1))
    run(controller, clock, 3)
    assert len(launcher.gangs) == 1
    assert queue.get(urgent.id).state == JobState.RUNNING
    assert queue.attempts(low.id)[0].cause == "a job of priority 1 needs its place"


# Jobs that users stop


def test_a_paused_job_leaves_with_a_checkpoint_and_comes_back_when_resumed(
    controller: Controller, submit: Submit, launcher: MemoryLauncher, queue: JobQueue, clock: Clock
) -> None:
    job = submit("colour")
    run(controller, clock)
    queue.pause(job.id, "ann")
    kept = launcher.gang.checkpoint("colour", 5)
    run(controller, clock)
    assert launcher.gang.withdrawn == [(job.id, 1, True)]
    assert queue.get(job.id).state == JobState.PAUSED
    run(controller, clock)
    assert queue.get(job.id).state == JobState.PAUSED
    queue.resume(job.id, "ann")
    run(controller, clock)
    again = launcher.gang.order_of("colour")
    assert (again.epoch > 1, again.checkpoint) == (True, kept)


@pytest.mark.parametrize("word", ["train", "fail", "end"])
def test_nothing_a_zombie_says_reaches_a_cancelled_job(
    controller: Controller,
    submit: Submit,
    launcher: MemoryLauncher,
    queue: JobQueue,
    clock: Clock,
    word: str,
) -> None:
    job = submit("colour")
    run(controller, clock)
    queue.cancel(job.id, "ann")
    if word == "fail":
        launcher.gang.fail("colour", "broken")
    else:
        getattr(launcher.gang, word)()
    run(controller, clock)
    assert queue.get(job.id).state == JobState.CANCELLED


def test_a_cancelled_job_leaves_the_gang_and_the_others_stay(
    controller: Controller, submit: Submit, launcher: MemoryLauncher, queue: JobQueue, clock: Clock
) -> None:
    job, other = submit("colour"), submit("other")
    run(controller, clock)
    queue.cancel(job.id, "ann")
    run(controller, clock)
    assert launcher.gang.withdrawn == [(job.id, 1, False)]
    launcher.gang.train("other")
    controller.step()
    assert queue.get(other.id).state == JobState.SUCCEEDED
    assert queue.get(job.id).state == JobState.CANCELLED


# Leases


def test_a_job_on_a_worker_that_stands_still_is_taken_away_and_its_words_count_no_more(
    make_controller: MakeController,
    submit: Submit,
    launcher: MemoryLauncher,
    queue: JobQueue,
    registry: PromptRegistry,
    clock: Clock,
) -> None:
    controller = make_controller(lease_s=0.0)  # a lease is over as soon as nobody renews it
    job = submit("colour")
    controller.step()
    asleep = launcher.gang.order_of("colour")
    launcher.gang.silent_s[job.id] = LEASE_S
    run(controller, clock, 1)
    assert (job.id, asleep.epoch, False) in launcher.gang.withdrawn
    assert controller.counters.lease_expiries >= 1
    launcher.gang.events.clear()
    launcher.gang.orders = [asleep]
    launcher.gang.train()
    controller.step()
    assert registry.list() == []
    assert controller.counters.stale_events >= 1


def test_a_stale_leases_completion_changes_nothing(
    make_controller: MakeController,
    submit: Submit,
    launcher: MemoryLauncher,
    queue: JobQueue,
    registry: PromptRegistry,
    clock: Clock,
) -> None:
    job = submit("colour")
    zombie = make_controller(holder="zombie:1:1")
    run(zombie, clock)
    stale = launcher.gang
    heir = make_controller(holder="heir:1:1", is_dead=lambda holder: holder == "zombie:1:1")
    run(heir, clock)
    assert launcher.gang is not stale
    assert heir.is_leading

    stale.train()
    stale.end()
    zombie.step()
    assert registry.list() == []
    assert queue.get(job.id).state == JobState.RUNNING
    run(zombie, clock)
    assert not zombie.is_leading
    assert zombie.leader == "heir:1:1"
    assert zombie.num_gangs == 0

    launcher.gang.train()
    heir.step()
    assert queue.get(job.id).state == JobState.SUCCEEDED
    assert len(registry.list()) == 1
    assert [each.holder for each in queue.attempts(job.id)] == ["zombie:1:1", "heir:1:1"]


def test_of_two_controllers_one_leads_and_the_other_starts_nothing(
    make_controller: MakeController, submit: Submit, launcher: MemoryLauncher, clock: Clock
) -> None:
    first, second = make_controller(holder="a:1:1"), make_controller(holder="b:1:1")
    submit("colour")
    for _ in range(3):
        run(first, clock, 1)
        run(second, clock, 1)
    assert (first.is_leading, second.is_leading, second.leader) == (True, False, "a:1:1")
    assert len(launcher.gangs) == 1
    first.stop()
    run(second, clock, 2)
    assert second.is_leading
    assert len(launcher.gangs) == 2


def test_a_gang_of_a_controller_that_leads_no_more_ends_with_its_last_job(
    make_controller: MakeController,
    submit: Submit,
    launcher: MemoryLauncher,
    leadership: Leadership,
    queue: JobQueue,
    clock: Clock,
) -> None:
    first, second = make_controller(holder="a:1:1"), make_controller(holder="b:1:1")
    job = submit("colour")
    run(first, clock)
    leadership.resign("a:1:1")
    run(second, clock)
    run(first, clock)
    assert (first.is_leading, second.is_leading, first.num_gangs) == (False, True, 1)
    launcher.gang.train()
    run(first, clock, 2)
    assert queue.get(job.id).state == JobState.SUCCEEDED
    assert first.num_gangs == 0


def test_a_cluster_that_takes_longer_than_a_lease_to_join_starts_no_second_gang(
    make_controller: MakeController,
    submit: Submit,
    launcher: MemoryLauncher,
    leadership: Leadership,
    clock: Clock,
) -> None:
    def join() -> None:
        clock.now += LEASE_S + 1
        leadership.resign("a:1:1")
        second.step()

    first, second = make_controller(holder="a:1:1", connect=join), make_controller(holder="b:1:1")
    submit("colour")
    first.step()
    assert second.is_leading
    assert len(launcher.gangs) == 1
    clock.now += 2.0
    first.step()
    assert not first.is_leading


# A database that is away


@contextmanager
def away(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every transaction fails as if the server were gone."""

    @contextmanager
    def refuse(engine: object, mode: str) -> Iterator[None]:
        raise DatabaseUnavailable("connection refused")
        yield

    with monkeypatch.context() as patch:
        patch.setattr("orchestrator.registry.database.transaction", refuse)
        yield
    assert transaction is not refuse


def test_a_short_absence_of_the_database_loses_nothing(
    controller: Controller,
    submit: Submit,
    launcher: MemoryLauncher,
    queue: JobQueue,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done, going = submit("done"), submit("going")
    run(controller, clock)
    with away(monkeypatch):
        launcher.gang.train("done")
        kept = launcher.gang.checkpoint("going", 5)
        run(controller, clock, 5)
        assert controller.database_error is not None
        assert not controller.is_idle
    assert launcher.gang.withdrawn == []
    run(controller, clock)
    assert controller.database_error is None
    assert queue.get(done.id).state == JobState.SUCCEEDED
    assert queue.get(going.id).state == JobState.RUNNING
    assert queue.get(going.id).checkpoint == kept


def test_a_long_absence_stops_the_jobs_and_they_go_on_when_it_is_back(
    controller: Controller,
    submit: Submit,
    launcher: MemoryLauncher,
    queue: JobQueue,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = submit("colour")
    run(controller, clock)
    with away(monkeypatch):
        run(controller, clock, 3)
        clock.now += LEASE_S
        kept = launcher.gang.checkpoint("colour", 5)
        controller.step()
        assert launcher.gang.withdrawn == [(job.id, 1, True)]
        run(controller, clock, 3)
    run(controller, clock, 2)
    again = launcher.gang.order_of("colour")
    assert (again.epoch > 1, again.checkpoint) == (True, kept)
    assert queue.get(job.id).faults == 0
    assert queue.attempts(job.id)[0].cause == DATABASE_AWAY


def test_after_a_long_absence_others_have_time_to_write_down_what_they_heard(
    make_controller: MakeController,
    submit: Submit,
    launcher: MemoryLauncher,
    queue: JobQueue,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    leader, other = make_controller(holder="a:1:1"), make_controller(holder="b:1:1")
    run(leader, clock, 1)
    job = submit("colour")
    queue.claim([job.id], "b:1:1", -1.0, "gang-b")
    with away(monkeypatch):
        clock.now += LEASE_S + 1
        leader.step()
    run(leader, clock)
    assert queue.get(job.id).state == JobState.ADMITTED
    run(leader, clock, 32)
    assert queue.attempts(job.id)[0].outcome == "reclaimed"
    assert not other.is_leading


def test_claims_whose_answer_was_lost_are_given_back(
    controller: Controller, submit: Submit, queue: JobQueue, clock: Clock
) -> None:
    job = submit("colour")
    queue.claim([job.id], "host:1:1", LEASE_S, "gang-unknown")
    run(controller, clock)
    assert queue.get(job.id).state == JobState.RUNNING
    assert queue.attempts(job.id)[0].fault == Fault.PREEMPTION


# Clusters


def test_a_cluster_that_cannot_be_reached_is_said_and_no_job_pays_for_it(
    make_controller: MakeController, submit: Submit, queue: JobQueue
) -> None:
    def connect() -> None:
        raise TuttiError("cannot reach the Ray cluster at 10.0.0.1:6379")

    job = submit("colour")
    with pytest.raises(TuttiError, match="cannot reach the Ray cluster"):
        make_controller(connect=connect).step()
    assert (queue.get(job.id).state, queue.get(job.id).attempts) == (JobState.QUEUED, 0)


def test_a_cluster_that_takes_no_gang_is_said_after_some_tries(
    controller: Controller, submit: Submit, launcher: MemoryLauncher, queue: JobQueue, clock: Clock
) -> None:
    job = submit("colour")
    launcher.refusal = ConnectionError("the head is gone")
    for _ in range(MAX_LAUNCH_FAILURES - 1):
        clock.now += 10.0
        controller.step()
    clock.now += 10.0
    with pytest.raises(TuttiError, match="the head is gone"):
        controller.step()
    launcher.refusal = None
    run(controller, clock, 4)
    assert queue.get(job.id).state == JobState.RUNNING


def test_what_the_cluster_lacks_now_is_waited_for_and_the_job_says_so(
    make_controller: MakeController,
    submit: Submit,
    launcher: MemoryLauncher,
    queue: JobQueue,
    clock: Clock,
) -> None:
    nodes: list[str] = []

    def shard(fingerprint: str, zero_stage: int | None, num_whole: int) -> ShardPlan:
        if not nodes:
            raise ClusterUnavailable("the Ray cluster has no machine to train on")
        return ShardPlan(0, "none", "")

    controller = make_controller(shard=shard)
    job = submit("colour")
    run(controller, clock, 30)
    assert (queue.get(job.id).state, queue.get(job.id).attempts) == (JobState.QUEUED, 0)
    said = [line.text for line in queue.log(job.id)]
    assert said[1:] == ["waits: the Ray cluster has no machine to train on"]
    nodes.append("new")
    run(controller, clock, 20)
    assert queue.get(job.id).state == JobState.RUNNING


def test_workers_that_died_and_workers_of_other_controllers_are_not_planned_with(
    make_controller: MakeController,
    submit: Submit,
    launcher: MemoryLauncher,
    book: GangBook,
    clock: Clock,
) -> None:
    cpus = [1]
    controller = make_controller(num_cpus=lambda: cpus[0], limits=Limits(num_workers=4))
    for name in "abc":
        submit(name)
    run(controller, clock, 1)
    assert launcher.gang.order.max_workers == 1
    controller.stop()
    book.open(replace(launcher.gang.order, name="gang-other"), "other:1:1")
    book.beat("gang-other", None, 2, 0.1, 1.0)
    cpus[0] = 4
    run(controller, clock, 1)
    assert launcher.gang.order.max_workers == 2


def test_a_controller_that_does_not_admit_starts_nothing(
    controller: Controller, submit: Submit, launcher: MemoryLauncher
) -> None:
    submit("a")
    controller.step(admits=False)
    assert launcher.gangs == []


def test_nothing_queued_is_nothing_to_do(controller: Controller, launcher: MemoryLauncher) -> None:
    controller.step()
    assert controller.is_idle
    assert launcher.gangs == []


def test_jobs_that_wait_for_a_failed_one_are_cancelled(
    controller: Controller, submit: Submit, launcher: MemoryLauncher, queue: JobQueue, clock: Clock
) -> None:
    first = submit("first")
    second = submit("second", options=JobOptions(after=(first.id,)))
    run(controller, clock)
    assert launcher.gang.tasks == ["first"]
    launcher.gang.fail("first", "NaN")
    run(controller, clock)
    assert queue.get(second.id).state == JobState.CANCELLED


def test_gangs_of_a_dead_controller_are_written_off(
    make_controller: MakeController,
    submit: Submit,
    book: GangBook,
    clock: Clock,
    database: Database,
) -> None:
    submit("colour")
    run(make_controller(holder="dead:1:1"), clock)
    heir = make_controller(holder="heir:1:1", is_dead=lambda holder: holder == "dead:1:1")
    run(heir, clock)
    live = {record.name: record.holder for record in book.list()}
    assert set(live.values()) == {"heir:1:1"}
