from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.domain.job import RETRIABLE, TRANSITIONS, JobState, Submission, retry_pause_s
from orchestrator.domain.task_spec import TaskSpec

MakeSpec = Callable[..., TaskSpec]
ENDS = {JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED}


def test_every_state_has_its_transitions() -> None:
    assert set(TRANSITIONS) == set(JobState)


def test_the_ends_absorb_and_nothing_else_does() -> None:
    assert {state for state in JobState if state.is_terminal} == ENDS


@pytest.mark.parametrize("end", [JobState.SUCCEEDED, JobState.FAILED])
def test_only_a_held_job_succeeds_or_fails(end: JobState) -> None:
    before = {state for state in JobState if end in TRANSITIONS[state]}
    assert before == {JobState.ADMITTED, JobState.RUNNING}


def test_only_ends_without_a_result_can_be_retried() -> None:
    assert ENDS - {JobState.SUCCEEDED} == RETRIABLE


def test_machine_is_given_ever_longer_pauses() -> None:
    assert [retry_pause_s(faults) for faults in range(6)] == [0, 0, 5, 10, 20, 40]
    assert [retry_pause_s(faults) for faults in (8, 9, 1000)] == [300, 300, 300]


@pytest.mark.parametrize("state", sorted(set(JobState) - ENDS))
def test_what_has_not_ended_can_be_cancelled(state: JobState) -> None:
    assert JobState.CANCELLED in TRANSITIONS[state]


@given(st.lists(st.randoms(use_true_random=False), min_size=12, max_size=12))
def test_every_walk_can_come_to_an_end(randoms: list[Any]) -> None:
    state = JobState.QUEUED
    for random in randoms:
        if state.is_terminal:
            break
        state = random.choice(sorted(TRANSITIONS[state]))
    assert state.is_terminal or TRANSITIONS[state] & (ENDS | {JobState.QUEUED})


@pytest.fixture
def submission(make_spec: MakeSpec) -> Submission:
    return Submission(make_spec(), "base", {"train": "t", "eval": "e"}, {"train": 2}, 96.0)


def test_the_same_submission_has_the_same_key(submission: Submission, make_spec: MakeSpec) -> None:
    assert replace(submission, spec=make_spec()).idempotency_key == submission.idempotency_key


def test_moved_data_files_are_the_same_submission(
    submission: Submission, make_spec: MakeSpec
) -> None:
    moved = make_spec(data={"train": "/else/where.jsonl", "eval": "eval.jsonl"})
    assert replace(submission, spec=moved).idempotency_key == submission.idempotency_key


def test_facts_about_the_data_do_not_count(submission: Submission) -> None:
    same = replace(submission, num_positions=1.0, num_rows={})
    assert same.idempotency_key == submission.idempotency_key


def test_whatever_changes_the_result_changes_the_key(
    submission: Submission, make_spec: MakeSpec
) -> None:
    data = {"train": "train.jsonl", "eval": "eval.jsonl", "max_length": 64}
    others = [
        replace(submission, base_fingerprint="other"),
        replace(submission, datasets={"train": "t2", "eval": "e"}),
        replace(submission, datasets={"train": "e", "eval": "t"}),
        replace(submission, nonce="again"),
        replace(submission, spec=make_spec(training={"seed": 1})),
        replace(submission, spec=make_spec(data=data)),
    ]
    keys = {each.idempotency_key for each in (submission, *others)}
    assert len(keys) == len(others) + 1
