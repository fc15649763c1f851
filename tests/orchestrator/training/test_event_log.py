from orchestrator.domain.gang import StageReached, TaskNoted, TaskProgress
from orchestrator.training.event_log import EventLog


def progress(job: str, step: int) -> TaskProgress:
    return TaskProgress(job, step, 10, epoch=1)


def test_of_progress_that_nothing_came_after_the_latest_is_told() -> None:
    log = EventLog()
    for event in (progress("a", 1), progress("b", 1), progress("a", 2)):
        log.add(event)
    assert log.take() == (progress("a", 2), progress("b", 1))
    assert log.take() == ()


def test_what_came_between_keeps_its_place() -> None:
    log, note = EventLog(), TaskNoted("a", 1, "half way")
    events = (StageReached(0, "training"), progress("a", 1), note, progress("a", 2))
    for event in events:
        log.add(event)
    assert log.take() == events


def test_another_epochs_progress_is_another_tasks() -> None:
    log, newer = EventLog(), TaskProgress("a", 1, 10, epoch=2)
    log.add(progress("a", 5))
    log.add(newer)
    assert log.take() == (progress("a", 5), newer)
