"""Text meant to break SQL, JSON or a driver is stored and found, or refused with a sentence."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from orchestrator.domain.base_model import BaseModelRecord
from orchestrator.domain.errors import InvalidInput, UnknownName
from orchestrator.domain.job import Fault, Lease, Submission
from orchestrator.domain.prompt_version import PromptRef, TrainedPrompt
from orchestrator.domain.task_spec import TaskSpec
from orchestrator.registry.base_model_registry import BaseModelRegistry
from orchestrator.registry.database import Database
from orchestrator.registry.job_queue import JobQueue
from orchestrator.registry.outbox import Outbox
from orchestrator.registry.prompt_registry import PromptRegistry

HOSTILE = [
    "'; DROP TABLE jobs; --",
    "%s %(x)s {0} :name ? \\",
    "zero\x00byte and lone \ud800 surrogate",
    "\u202eright to left \U0001f4a5 line\r\nbreak\x1b[31m",
    "x" * 100_000,
]
Trained = Callable[..., TrainedPrompt]


@pytest.fixture(params=HOSTILE, ids=lambda text: ascii(text)[:20])
def hostile(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def stored(text: str) -> str:
    """What a text column gives back: the characters no database holds are replaced."""
    return text.replace("\x00", "\ufffd").replace("\ud800", "\ufffd")


def test_hostile_text_in_the_queue(
    queue: JobQueue,
    running: Callable[..., Lease],
    submission: Callable[..., Submission],
    hostile: str,
) -> None:
    lease = running()
    queue.heartbeat([lease], 60, {lease.job_id: {hostile: hostile}})
    assert queue.get(lease.job_id).progress == {hostile: hostile}
    queue.release(lease, hostile, Fault.PREEMPTION)
    job, second = queue.claim([lease.job_id], hostile, 60, hostile)[lease.job_id]
    assert (second.holder, job.gang) == (stored(hostile), stored(hostile))
    assert queue.fail(second, hostile).error == stored(hostile)[-20_000:]
    causes = [(a.holder, a.cause) for a in queue.attempts(lease.job_id)]
    assert causes[0][1] == stored(hostile)
    assert causes[1] == (stored(hostile), stored(hostile)[-20_000:])
    again, created = queue.submit(submission(), hostile)
    assert created
    assert again.owner == stored(hostile)
    assert queue.list(task=hostile) == []
    assert queue.claim([hostile], "controller", 60) == {}
    queue.note([(hostile, "nobody's"), (again.id, hostile)])
    assert queue.log(again.id)[-1].text == stored(hostile)[-20_000:]
    with pytest.raises(UnknownName):
        queue.get(hostile)
    assert queue.get(again.id) == again


def test_hostile_text_in_a_submission(
    queue: JobQueue, submission: Callable[..., Submission], hostile: str
) -> None:
    text = stored(hostile)
    given = submission(nonce=text)
    values = {**given.spec.model_dump(), "candidates": ["red", text]}
    values["data"] = {"train": text, "eval": text}
    given = replace(given, spec=TaskSpec.model_validate(values), datasets={text: text})
    job, _ = queue.submit(given, "ann")
    assert [each.id for each in queue.ready()] == [job.id]
    assert queue.get(job.id).submission == given


def test_hostile_text_in_versions_and_promotions(
    registry: PromptRegistry, outbox: Outbox, trained: Trained, hostile: str
) -> None:
    given = trained()
    text = stored(hostile)
    lineage = replace(
        given.lineage, base=hostile, code_version=hostile, datasets={hostile: hostile}
    )
    version, _ = registry.register(replace(given, config={text: text}, lineage=lineage))
    assert (version.lineage, version.config) == (lineage, {text: text})
    moved = registry.promote(PromptRef("color", 1), "production", hostile, hostile)
    assert (moved.actor, moved.reason) == (text, text)
    outbox.link(version, hostile, hostile)
    assert registry.resolve(PromptRef("color", 1)).run_id == text
    described = registry.describe(PromptRef("color", 1), hostile, text[:1000], {"x": text[:1000]})
    assert (described.description, described.tags) == (text[:1000], {"x": text[:1000]})
    assert {each.actor for each in registry.changes(PromptRef("color", 1))} == {text}
    (approval,) = registry.approve(PromptRef("color", 1), hostile, hostile)
    assert (approval.actor, approval.note) == (text, text)
    assert registry.withdraw(PromptRef("color", 1), hostile) == []
    (item, _) = outbox.pending()
    outbox.failed(item.id, hostile)
    assert outbox.pending()[0].last_error == text


def test_hostile_names_are_refused_or_unknown(
    registry: PromptRegistry, trained: Trained, hostile: str
) -> None:
    with pytest.raises(InvalidInput, match="is not a name"):
        registry.register(trained(hostile))
    registry.register(trained())
    with pytest.raises(UnknownName):
        registry.resolve(PromptRef(hostile, None))
    with pytest.raises(UnknownName):
        registry.resolve(PromptRef("color", hostile))
    with pytest.raises(InvalidInput):
        registry.promote(PromptRef("color", 1), hostile, "ann")
    assert registry.list(hostile) == registry.list(alias=hostile) == []
    assert registry.history(hostile, hostile) == []


def test_hostile_text_in_base_models(database: Database, hostile: str) -> None:
    bases = BaseModelRegistry(database)
    record = BaseModelRecord(
        "tiny", "a" * 64, hostile, hostile, {hostile: hostile}, hostile, 1, 2, 3, datetime.now(UTC)
    )
    added, _ = bases.add(record)
    assert (added.source, added.architecture) == (stored(hostile), stored(hostile))
    assert added.files == {hostile: hostile}
    assert bases.get("tiny") == added
    with pytest.raises(UnknownName):
        bases.get(hostile)
    with pytest.raises(UnknownName):
        bases.get_by_fingerprint(hostile)
