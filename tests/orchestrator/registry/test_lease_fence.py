"""Every change of state goes by the domain's table, pair for pair."""

from collections.abc import Callable

import pytest
from sqlalchemy import select, update

from orchestrator.domain.job import RETRIABLE, TRANSITIONS, JobState, Submission
from orchestrator.registry.database import Database
from orchestrator.registry.job_queue import JobQueue
from orchestrator.registry.lease_fence import HELD, move, states_before
from orchestrator.registry.tables import jobs


@pytest.mark.parametrize("before", list(JobState))
def test_job_moves_as_the_table_says_and_not_otherwise(
    queue: JobQueue, database: Database, submission: Callable[..., Submission], before: JobState
) -> None:
    queue.submit(submission(), "ann")
    for state in (state for state in JobState if state not in HELD):
        with database.write() as connection:
            connection.execute(update(jobs).values(state=before, epoch=5, finished_at=None))
            row = connection.execute(select(jobs)).one()
            is_retry = before in RETRIABLE and state == JobState.QUEUED
            if state not in TRANSITIONS[before] and not is_retry:
                with pytest.raises(AssertionError, match=f"{before} -> {state}"):
                    move(connection, row, state)
                continue
            moved = move(connection, row, state)
            assert (moved.state, moved.epoch, moved.lease_token) == (state, 6, None)
            assert (moved.finished_at is not None) == state.is_terminal


@pytest.mark.parametrize("state", list(JobState))
def test_states_before_one_are_the_table_read_backwards(state: JobState) -> None:
    assert states_before(state) == [s for s in JobState if state in TRANSITIONS[s]]
