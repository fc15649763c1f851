"""A job's end is one transaction behind its lease: all of it happens, or nothing."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from sqlalchemy import select

from orchestrator.domain.errors import IntegrityError, StaleLease
from orchestrator.domain.job import JobState, Lease, Submission
from orchestrator.domain.prompt_version import PromptRef, TrainedPrompt
from orchestrator.domain.task_spec import PromoteSpec
from orchestrator.registry.completion import Completion
from orchestrator.registry.database import Database
from orchestrator.registry.job_queue import JobQueue
from orchestrator.registry.outbox import Outbox
from orchestrator.registry.prompt_registry import PromptRegistry
from orchestrator.registry.tables import jobs

Trained = Callable[..., TrainedPrompt]
Running = Callable[..., Lease]
ALWAYS = PromoteSpec(alias="production")
BETTER = PromoteSpec(alias="production", when="accuracy > incumbent.accuracy")


def test_completed_job_has_its_version_and_promotion(
    registry: PromptRegistry, queue: JobQueue, outbox: Outbox, trained: Trained, running: Running
) -> None:
    lease = running()
    queue.checkpoint(lease, "d" * 64)
    done = registry.complete(lease, trained(), ALWAYS, "controller")
    assert (done.created, done.refusals, done.version.ref) == (True, (), "color@1")
    assert done.version.aliases == ("production",)
    assert done.version.lineage.job == lease.job_id
    assert done.version == registry.resolve(PromptRef("color", "production"))
    assert [done.promotion] == registry.history("color")
    assert done.promotion is not None
    assert done.promotion.reason == f"job {lease.job_id[:12]}"
    job = queue.get(lease.job_id)
    assert (job.state, job.version, job.error) == (JobState.SUCCEEDED, 1, None)
    assert (job.checkpoint, job.finished_at is not None) == (None, True)
    assert [(a.outcome, a.finished_at is not None) for a in queue.attempts(job.id)] == [
        ("succeeded", True)
    ]
    assert [(item.kind, item.payload) for item in outbox.pending()] == [
        ("version_registered", {"task": "color", "number": 1}),
        ("alias_moved", {"task": "color", "alias": "production", "number": 1}),
    ]


def test_job_succeeds_though_its_gate_refuses(
    registry: PromptRegistry,
    queue: JobQueue,
    database: Database,
    trained: Trained,
    running: Running,
) -> None:
    registry.complete(running(), trained(accuracy=0.75), BETTER, "controller")
    lease = running(nonce="b")
    done = registry.complete(lease, trained(content=1, accuracy=0.5), BETTER, "controller")
    assert done.refusals == ("accuracy > incumbent.accuracy is false: 0.5 against 0.75",)
    assert (done.promotion, done.version.number, done.version.aliases) == (None, 2, ())
    assert queue.get(lease.job_id).state == JobState.SUCCEEDED
    with database.read() as connection:
        query = select(jobs.c.outcome).where(jobs.c.id == lease.job_id)
        outcome = connection.execute(query).scalar_one()
    assert outcome == {
        "version": 2,
        "created": True,
        "alias": None,
        "refusals": list(done.refusals),
    }


def test_promotion_that_cannot_be_does_not_cost_the_version(
    registry: PromptRegistry, trained: Trained, running: Running
) -> None:
    done = registry.complete(
        running(), trained(), PromoteSpec.model_construct(alias="7", when=None), "controller"
    )
    assert "'7' is a number" in done.refusals[0]
    wrong = PromoteSpec(alias="production", when="import os")
    done = registry.complete(running(nonce="b"), trained(content=1), wrong, "controller")
    assert "cannot read the gate" in done.refusals[0]
    assert [v.number for v in registry.list("color")] == [2, 1]


def test_equal_content_makes_no_version_and_no_second_move(
    registry: PromptRegistry, queue: JobQueue, outbox: Outbox, trained: Trained, running: Running
) -> None:
    registry.complete(running(), trained(accuracy=0.5), ALWAYS, "controller")
    num_items = outbox.num_pending()
    lease = running(nonce="b")
    done = registry.complete(lease, trained(accuracy=0.75), ALWAYS, "controller")
    assert (done.created, done.promotion, done.refusals) == (False, None, ())
    assert (done.version.number, done.version.metrics) == (1, {"accuracy": 0.5})
    assert queue.get(lease.job_id).version == 1
    assert outbox.num_pending() == num_items


def test_equal_content_is_promoted_where_the_alias_points_elsewhere(
    registry: PromptRegistry, trained: Trained, running: Running
) -> None:
    registry.register(trained(accuracy=0.5))
    registry.register(trained(content=1, accuracy=0.75))
    registry.promote(PromptRef("color", 2), "production", "ann")
    gated = registry.complete(running(), trained(), BETTER, "controller")
    assert gated.refusals == ("accuracy > incumbent.accuracy is false: 0.5 against 0.75",)
    free = registry.complete(running(nonce="b"), trained(), ALWAYS, "controller")
    assert free.promotion is not None
    assert (free.promotion.from_version, free.promotion.to_version) == (2, 1)


def test_without_promotion_no_alias_moves(
    registry: PromptRegistry, trained: Trained, running: Running
) -> None:
    done = registry.complete(running(), trained(), None, "controller")
    assert (done.promotion, done.refusals, done.version.aliases) == (None, (), ())


def unchanged(
    registry: PromptRegistry, queue: JobQueue, outbox: Outbox, lease: Lease, state: JobState
) -> bool:
    """Whether nothing but the state of `lease`'s job shows that a completion was tried."""
    job = queue.get(lease.job_id)
    return (
        registry.list() == []
        and registry.history("color") == []
        and outbox.num_pending() == 0
        and (job.state, job.version, job.finished_at) == (state, None, None)
        and "succeeded" not in [a.outcome for a in queue.attempts(job.id)]
    )


@pytest.mark.parametrize("step", ["add_version", "move_alias", "end_attempt", "find_version"])
def test_failure_inside_leaves_nothing_and_can_be_tried_again(
    registry: PromptRegistry,
    queue: JobQueue,
    outbox: Outbox,
    trained: Trained,
    running: Running,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
) -> None:
    def explode(*args: object, **options: object) -> None:
        raise ZeroDivisionError

    lease = running()
    with monkeypatch.context() as broken:
        broken.setattr(f"orchestrator.registry.completion.{step}", explode)
        with pytest.raises(ZeroDivisionError):
            registry.complete(lease, trained(), ALWAYS, "controller")
    assert unchanged(registry, queue, outbox, lease, JobState.RUNNING)
    assert registry.complete(lease, trained(), ALWAYS, "controller").version.number == 1


def test_stale_lease_cannot_complete(
    registry: PromptRegistry, queue: JobQueue, outbox: Outbox, trained: Trained, running: Running
) -> None:
    lease = running()
    queue.reclaim(lambda holder: True)
    _, second = queue.claim([lease.job_id], "second", 60)[lease.job_id]
    queue.start(second)
    with pytest.raises(StaleLease, match="epoch 1: the job is running at epoch 3"):
        registry.complete(lease, trained(), ALWAYS, "controller")
    assert unchanged(registry, queue, outbox, lease, JobState.RUNNING)
    assert registry.complete(second, trained(), ALWAYS, "second").version.number == 1


def test_job_whose_start_was_not_told_completes(
    registry: PromptRegistry,
    queue: JobQueue,
    submission: Callable[..., Submission],
    trained: Trained,
) -> None:
    job, _ = queue.submit(submission(), "ann")
    _, lease = queue.claim([job.id], "controller", 60)[job.id]
    registry.complete(lease, trained(), None, "controller")
    assert queue.get(job.id).state == JobState.SUCCEEDED
    assert queue.log(job.id)[-1].text == "attempt 1 succeeded: it made color@1"


def test_job_completes_once(
    registry: PromptRegistry, queue: JobQueue, trained: Trained, running: Running
) -> None:
    lease = running()

    def complete(content: int) -> Completion | None:
        try:
            return registry.complete(lease, trained(content=content), ALWAYS, "controller")
        except StaleLease:
            return None

    with ThreadPoolExecutor(6) as pool:
        done = [completion for completion in pool.map(complete, range(12)) if completion]
    assert len(done) == len(registry.list()) == len(registry.history("color")) == 1
    assert queue.get(lease.job_id).version == 1


@pytest.mark.parametrize("wrong", ["task", "base"])
def test_result_of_another_task_or_base_is_refused(
    registry: PromptRegistry,
    queue: JobQueue,
    outbox: Outbox,
    trained: Trained,
    running: Running,
    wrong: str,
) -> None:
    lease, result = running(), trained("shape" if wrong == "task" else "color")
    if wrong == "base":
        result = replace(result, lineage=replace(result.lineage, base_fingerprint="f" * 64))
    with pytest.raises(IntegrityError, match=r"trains color on base .*, but the result is"):
        registry.complete(lease, result, ALWAYS, "controller")
    assert unchanged(registry, queue, outbox, lease, JobState.RUNNING)


def test_jobs_of_one_task_complete_in_parallel(
    registry: PromptRegistry, trained: Trained, running: Running
) -> None:
    leases = [running(nonce=str(number)) for number in range(8)]

    def complete(number: int) -> Completion:
        result = trained(content=number, accuracy=0.1 * number)
        return registry.complete(leases[number], result, BETTER, "controller")

    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(complete, range(8)))
    assert sorted(c.version.number for c in done) == list(range(1, 9))
    best = registry.resolve(PromptRef("color", "production"))
    assert best.metrics["accuracy"] == pytest.approx(0.7)
