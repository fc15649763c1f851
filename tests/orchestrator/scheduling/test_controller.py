from collections.abc import Callable

import pytest

from orchestrator.domain.digest import digest_json
from orchestrator.domain.errors import IntegrityError, TuttiError
from orchestrator.domain.gang import StageReached
from orchestrator.domain.job import Job, JobState
from orchestrator.registry.job_queue import JobQueue
from orchestrator.registry.prompt_registry import PromptRegistry
from orchestrator.scheduling.controller import MAX_ATTEMPTS, STOPPED, Controller
from orchestrator.scheduling.shard_plan import ShardPlan
from tests.orchestrator.scheduling.conftest import BASE, LEASE_S, Clock, MemoryLauncher

Submit = Callable[..., Job]
MakeController = Callable[..., Controller]


def test_a_finished_task_is_registered_and_promoted(
    controller: Controller,
    submit: Submit,
    launcher: MemoryLauncher,
    queue: JobQueue,
    registry: PromptRegistry,
) -> None:
    job = submit("colour")
    controller.step()
    assert queue.get(job.id).state == JobState.RUNNING
    launcher.gang.finish()
    launcher.gang.end()
    controller.step()

    done = queue.get(job.id)
    assert (done.state, done.version, done.error) == (JobState.SUCCEEDED, 1, None)
    (version,) = registry.list("colour")
    assert version.aliases == ("production",)
    assert version.lineage.job == job.id
    assert controller.watch.completions[job.id].version == version
    assert controller.is_idle
    (move,) = registry.history("colour")
    assert (move.actor, move.gate) == ("ann", "accuracy >= 0.5")


def test_a_refused_gate_keeps_the_version_and_says_why(
    controller: Controller, submit: Submit, launcher: MemoryLauncher, registry: PromptRegistry
) -> None:
    job = submit("colour")
    controller.step()
    launcher.gang.finish(accuracy=0.25)
    controller.step()
    completion = controller.watch.completions[job.id]
    assert completion.promotion is None
    assert completion.refusals == ("accuracy >= 0.5 is false: 0.25 against 0.5",)
    assert registry.list("colour")[0].aliases == ()


def test_the_order_holds_everything_the_workers_need(
    controller: Controller, submit: Submit, launcher: MemoryLauncher
) -> None:
    jobs = [submit(task) for task in ("a", "b", "c")]
    controller.step()
    order = launcher.gang.order
    assert (order.max_length, order.code_version, order.zero_stage) == (256, "0.1.0", 0)
    assert len(order.ranks) == 2
    assert {each.job_id for each in order.orders} == {job.id for job in jobs}
    assert {each.num_positions for each in order.orders} == {96.0}
    assert all(each.datasets == jobs[0].submission.datasets for each in order.orders)
    assert order.name == f"gang-{jobs[0].id[:8]}-1"
    assert order.sharding == "2 could hold it whole"


def test_a_plan_is_asked_for_where_neither_spec_nor_setting_says_a_stage(
    make_controller: MakeController, submit: Submit, launcher: MemoryLauncher, queue: JobQueue
) -> None:
    asked: list[object] = []

    def plan(*question: object) -> ShardPlan:
        asked.append(question)
        return ShardPlan(3, "cpu", "it is large")

    controller = make_controller(plan=plan, zero_stage=None, num_workers=4)
    jobs = [submit("a"), submit("b"), submit("c", sharding={"zero_stage": 3})]
    for _ in range(2):
        controller.step()
        launcher.gang.finish()
        launcher.gang.end()
        controller.step()
    assert asked == [(BASE, None, 2), (BASE, 3, 1)]
    order = launcher.gangs[0].order
    assert (order.zero_stage, order.offload, order.sharding) == (3, "cpu", "it is large")
    assert len(order.ranks) == 4
    assert all(queue.get(job.id).state == JobState.SUCCEEDED for job in jobs)


def test_a_base_that_fits_nowhere_fails_its_jobs_and_no_others(
    make_controller: MakeController, submit: Submit, launcher: MemoryLauncher, queue: JobQueue
) -> None:
    def plan(fingerprint: str, zero_stage: int | None, num_whole: int) -> ShardPlan:
        if fingerprint != BASE:
            raise TuttiError("28 GB do not fit", "Use more machines.")
        return ShardPlan(0, "none", "")

    controller = make_controller(plan=plan, zero_stage=None)
    large, small = submit("large", digest_json("large")), submit("small")
    controller.step()
    controller.step()
    assert queue.get(large.id).error == "28 GB do not fit\n  Use more machines."
    assert launcher.gang.tasks == ["small"]
    assert queue.get(small.id).state == JobState.RUNNING


def test_a_task_that_shares_its_rows_is_ordered_once_and_placed_on_every_rank(
    controller: Controller, submit: Submit, launcher: MemoryLauncher
) -> None:
    job = submit("a", sharding={"data_parallel": True})
    controller.step()
    order = launcher.gang.order
    assert [[each.job_id for each in rank] for rank in order.ranks] == [[job.id]] * 2
    assert [each.job_id for each in order.orders] == [job.id]


def test_a_failed_task_fails_alone(
    controller: Controller, submit: Submit, launcher: MemoryLauncher, queue: JobQueue
) -> None:
    good, bad = submit("good"), submit("bad")
    controller.step()
    launcher.gang.fail("bad", "the loss is not a finite number at step 3")
    controller.step()
    launcher.gang.finish("good")
    launcher.gang.end()
    controller.step()
    assert queue.get(good.id).state == JobState.SUCCEEDED
    failed = queue.get(bad.id)
    assert failed.state == JobState.FAILED
    assert failed.error == "the loss is not a finite number at step 3"
    assert controller.watch.failures == {bad.id: failed.error}
    assert [each.outcome for each in queue.attempts(bad.id)] == ["failed"]


def test_a_gang_that_dies_gives_its_jobs_back_and_they_run_again(
    controller: Controller, submit: Submit, launcher: MemoryLauncher, queue: JobQueue
) -> None:
    done, lost = submit("done"), submit("lost")
    controller.step()
    launcher.gang.finish("done")
    launcher.gang.end("worker 1 was killed")
    controller.step()
    assert queue.get(done.id).state == JobState.SUCCEEDED
    assert queue.get(lost.id).state == JobState.RUNNING
    assert len(launcher.gangs) == 2
    assert launcher.gang.tasks == ["lost"]
    assert launcher.gang.order.name != launcher.gangs[0].order.name
    first, _ = queue.attempts(lost.id)
    assert (first.outcome, first.cause) == ("released", "worker 1 was killed")


def test_a_job_whose_gangs_keep_dying_fails_with_the_cause(
    controller: Controller, submit: Submit, launcher: MemoryLauncher, queue: JobQueue
) -> None:
    job = submit("colour")
    for attempt in range(1, MAX_ATTEMPTS + 1):
        controller.step()
        assert len(launcher.gangs) == attempt
        launcher.gang.end(f"out of memory {attempt}")
    controller.step()
    failed = queue.get(job.id)
    assert failed.state == JobState.FAILED
    assert failed.error == f"out of memory {MAX_ATTEMPTS} (attempt {MAX_ATTEMPTS} of 3)"
    assert len(queue.attempts(job.id)) == MAX_ATTEMPTS
    controller.step()
    assert len(launcher.gangs) == MAX_ATTEMPTS


def test_a_gang_that_ends_without_a_word_is_a_failed_attempt(
    controller: Controller, submit: Submit, launcher: MemoryLauncher, queue: JobQueue
) -> None:
    job = submit("colour")
    controller.step()
    launcher.gang.end()
    controller.step()
    assert queue.attempts(job.id)[0].cause == "the gang ended before the job did"


def test_a_stale_leases_completion_changes_nothing(
    make_controller: MakeController,
    submit: Submit,
    launcher: MemoryLauncher,
    queue: JobQueue,
    registry: PromptRegistry,
) -> None:
    job = submit("colour")
    zombie = make_controller(holder="zombie:1:1")
    zombie.step()
    stale = launcher.gang
    heir = make_controller(holder="heir:1:1", is_dead=lambda holder: holder == "zombie:1:1")
    heir.step()
    assert launcher.gang is not stale

    stale.finish()
    stale.end()
    zombie.step()
    assert registry.list() == []
    assert queue.get(job.id).state == JobState.RUNNING
    assert "may not write at epoch 1" in zombie.watch.failures[job.id]
    assert zombie.watch.completions == {}

    launcher.gang.finish()
    heir.step()
    assert queue.get(job.id).state == JobState.SUCCEEDED
    assert len(registry.list()) == 1
    assert [each.holder for each in queue.attempts(job.id)] == ["zombie:1:1", "heir:1:1"]


@pytest.mark.parametrize("word", ["finish", "fail", "end"])
def test_nothing_a_zombie_says_reaches_a_cancelled_job(
    controller: Controller, submit: Submit, launcher: MemoryLauncher, queue: JobQueue, word: str
) -> None:
    job = submit("colour")
    controller.step()
    queue.cancel(job.id)
    if word == "fail":
        launcher.gang.fail("colour", "broken")
    else:
        getattr(launcher.gang, word)()
    controller.step()
    assert queue.get(job.id).state == JobState.CANCELLED


def test_a_job_that_was_taken_away_is_noticed_by_the_heartbeat(
    controller: Controller,
    submit: Submit,
    launcher: MemoryLauncher,
    queue: JobQueue,
    clock: Clock,
) -> None:
    job, other = submit("colour"), submit("other")
    controller.step()
    queue.cancel(job.id)
    clock.now += LEASE_S
    controller.step()
    assert "the job is cancelled" in controller.watch.failures[job.id]
    launcher.gang.finish()
    controller.step()
    assert queue.get(other.id).state == JobState.SUCCEEDED
    assert queue.get(job.id).state == JobState.CANCELLED


def test_stop_puts_unfinished_jobs_back(
    controller: Controller, submit: Submit, launcher: MemoryLauncher, queue: JobQueue
) -> None:
    done, lost = submit("done"), submit("lost")
    controller.step()
    launcher.gang.finish("done")
    controller.stop()
    assert launcher.gang.is_stopped
    assert controller.is_idle
    assert queue.get(done.id).state == JobState.SUCCEEDED
    assert queue.get(lost.id).state == JobState.QUEUED
    assert queue.attempts(lost.id)[0].cause == STOPPED


def test_attempts_that_a_user_stopped_do_not_count(
    make_controller: MakeController, submit: Submit, launcher: MemoryLauncher, queue: JobQueue
) -> None:
    job = submit("colour")
    for _ in range(MAX_ATTEMPTS + 1):
        stopped = make_controller()
        stopped.step()
        stopped.stop()
    controller = make_controller()
    controller.step()
    launcher.gang.end("killed")
    controller.step()
    assert queue.get(job.id).state == JobState.RUNNING


def test_what_another_submitter_queued_is_run_as_well(
    controller: Controller, submit: Submit, launcher: MemoryLauncher, queue: JobQueue
) -> None:
    queue.submit(submit("mine").submission, "ann")
    submit("theirs")
    controller.step()
    assert launcher.gang.tasks == ["mine", "theirs"]


def test_two_specs_of_a_task_run_one_after_the_other(
    controller: Controller,
    submit: Submit,
    launcher: MemoryLauncher,
    queue: JobQueue,
    registry: PromptRegistry,
) -> None:
    first, second = (submit("colour", training={"seed": seed}) for seed in (1, 2))
    controller.step()
    assert [each.job_id for each in launcher.gang.order.orders] == [first.id]
    assert queue.get(second.id).state == JobState.QUEUED
    launcher.gang.finish()
    launcher.gang.end()
    controller.step()
    assert [each.job_id for each in launcher.gang.order.orders] == [second.id]
    launcher.gang.finish()
    controller.step()
    assert [version.number for version in registry.list("colour")] == [2, 1]
    assert queue.get(second.id).version == 2


def test_one_gang_is_up_at_a_time(
    controller: Controller, submit: Submit, launcher: MemoryLauncher, queue: JobQueue
) -> None:
    submit("a")
    other = submit("b", base="f" * 64)
    controller.step()
    controller.step()
    assert len(launcher.gangs) == 1
    launcher.gang.finish()
    launcher.gang.end()
    controller.step()
    assert launcher.gang.order.base_fingerprint == "f" * 64
    assert queue.get(other.id).state == JobState.RUNNING


def test_a_controller_that_does_not_admit_starts_nothing(
    controller: Controller, submit: Submit, launcher: MemoryLauncher
) -> None:
    submit("a")
    controller.step(admits=False)
    assert launcher.gangs == []


def test_nothing_queued_is_nothing_to_do(controller: Controller) -> None:
    controller.step()
    assert controller.is_idle


def test_a_launch_that_is_refused_fails_the_jobs(
    controller: Controller, submit: Submit, launcher: MemoryLauncher, queue: JobQueue
) -> None:
    job = submit("colour")
    launcher.refusal = TuttiError("the cluster is too small")
    controller.step()
    assert queue.get(job.id).state == JobState.FAILED
    assert queue.get(job.id).error == "the cluster is too small"
    assert controller.is_idle


def test_a_base_that_was_altered_fails_its_jobs_and_lets_others_run(
    make_controller: MakeController, submit: Submit, launcher: MemoryLauncher, queue: JobQueue
) -> None:
    broken, good = submit("broken", base="f" * 64), submit("good")

    def max_length(fingerprint: str) -> int:
        if fingerprint == "f" * 64:
            raise IntegrityError("the base model was altered", "Add it again.")
        return 256

    controller = make_controller(max_length=max_length)
    controller.step()
    controller.step()
    assert queue.get(broken.id).state == JobState.FAILED
    assert "the base model was altered" in (queue.get(broken.id).error or "")
    assert queue.get(good.id).state == JobState.RUNNING


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
    accuracy: float,
    lineage: dict[str, str],
    reason: str,
) -> None:
    bad, good = submit("bad"), submit("good")
    controller.step()
    launcher.gang.finish("bad", accuracy=accuracy, **lineage)
    launcher.gang.finish("good")
    controller.step()
    assert queue.get(bad.id).state == JobState.FAILED
    assert reason in (queue.get(bad.id).error or "")
    assert queue.get(good.id).state == JobState.SUCCEEDED


def test_progress_is_watched_at_once_and_written_with_the_heartbeat(
    controller: Controller,
    submit: Submit,
    launcher: MemoryLauncher,
    queue: JobQueue,
    clock: Clock,
) -> None:
    job = submit("colour")
    controller.step()
    launcher.gang.events.append(StageReached(1, "loading the base"))
    launcher.gang.progress("colour", 7)
    controller.step()
    assert controller.watch.stages == {1: "loading the base"}
    assert controller.watch.progress[job.id].step == 7
    assert queue.get(job.id).progress == {}
    clock.now += LEASE_S
    controller.step()
    told = {"step": 7, "num_steps": 100, "loss": 0.5, "best": 0.25, "stage": "training"}
    assert queue.get(job.id).progress == told
    launcher.gang.progress("colour", 9)
    launcher.gang.finish()
    controller.step()
    assert queue.get(job.id).progress["step"] == 9


def test_an_end_is_told_once(
    controller: Controller, submit: Submit, launcher: MemoryLauncher, registry: PromptRegistry
) -> None:
    submit("colour")
    controller.step()
    launcher.gang.finish()
    launcher.gang.finish()
    launcher.gang.fail("colour", "too late")
    controller.step()
    assert len(registry.list()) == 1
    assert controller.watch.failures == {}


def test_a_dead_controllers_jobs_are_taken_over(
    make_controller: MakeController, submit: Submit, launcher: MemoryLauncher, queue: JobQueue
) -> None:
    job = submit("colour")
    make_controller(holder="dead:1:1").step()
    heir = make_controller(is_dead=lambda holder: holder.startswith("dead"))
    heir.step()
    assert len(launcher.gangs) == 2
    launcher.gang.finish()
    heir.step()
    done = queue.get(job.id)
    assert (done.state, done.attempts) == (JobState.SUCCEEDED, 2)
    assert queue.attempts(job.id)[0].cause == "holder died"


def test_jobs_another_controller_holds_are_left_alone(
    make_controller: MakeController, submit: Submit, launcher: MemoryLauncher
) -> None:
    submit("colour")
    make_controller(holder="one:1:1").step()
    make_controller(holder="two:1:1").step()
    assert len(launcher.gangs) == 1


@pytest.fixture
def discarded(make_controller: MakeController) -> tuple[Controller, list[str]]:
    """A controller, and the digests it discards."""
    found: list[str] = []
    return make_controller(discard=found.append), found


def test_a_job_goes_on_from_the_checkpoint_that_was_written_down(
    discarded: tuple[Controller, list[str]], submit: Submit, launcher: MemoryLauncher
) -> None:
    controller, dropped = discarded
    submit("colour")
    controller.step()
    assert launcher.gang.order_of("colour").checkpoint is None
    first = launcher.gang.checkpoint("colour", 10)
    controller.step()
    second = launcher.gang.checkpoint("colour", 20)
    launcher.gang.end("the node is gone")
    controller.step()
    assert dropped == [first], "the one before is of no use any more"
    controller.step()
    assert len(launcher.gangs) == 2
    assert launcher.gang.order_of("colour").checkpoint == second


def test_the_checkpoint_of_an_ended_job_is_discarded(
    discarded: tuple[Controller, list[str]], submit: Submit, launcher: MemoryLauncher
) -> None:
    controller, dropped = discarded
    for task in ("good", "bad"):
        submit(task)
    controller.step()
    digests = [launcher.gang.checkpoint(task, 1) for task in ("good", "bad")]
    launcher.gang.finish("good")
    launcher.gang.fail("bad", "NaN")
    controller.step()
    assert dropped == digests


def test_a_holder_that_lost_its_job_never_touches_the_next_ones_checkpoint(
    discarded: tuple[Controller, list[str]],
    submit: Submit,
    launcher: MemoryLauncher,
    queue: JobQueue,
) -> None:
    controller, dropped = discarded
    job = submit("colour")
    controller.step()
    kept = launcher.gang.checkpoint("colour", 1)
    controller.step()
    queue.reclaim(lambda holder: True)
    assert queue.claim(job.id, "another", LEASE_S) is not None
    late = launcher.gang.checkpoint("colour", 2)
    launcher.gang.finish()
    controller.step()
    assert dropped == [late]
    assert queue.get(job.id).checkpoint == kept


def test_a_job_that_is_submitted_again_starts_afresh(
    controller: Controller, submit: Submit, launcher: MemoryLauncher, queue: JobQueue
) -> None:
    job = submit("colour")
    controller.step()
    launcher.gang.checkpoint("colour", 1)
    launcher.gang.fail("colour", "NaN")
    launcher.gang.end()
    controller.step()
    again, is_new = queue.submit(job.submission, "ann")
    assert is_new
    assert again.checkpoint is None
