from typing import Any

import pytest

from orchestrator.domain.digest import digest_json
from orchestrator.domain.errors import InvalidInput
from orchestrator.domain.job import Submission
from orchestrator.domain.job_array import Work, check_array, expand
from orchestrator.domain.task_spec import TaskSpec
from tests.orchestrator.domain.conftest import SPEC

RATES = {"training.learning_rate": [0.1, 0.01], "encoder.hidden_size": [8, 16, 32]}


def swept(**changes: Any) -> TaskSpec:
    return TaskSpec.model_validate({**SPEC, "sweep": {"over": RATES}, "promote": None, **changes})


def submission(spec: TaskSpec, nonce: str = "") -> Submission:
    return Submission(spec, digest_json("base"), {"train": digest_json("rows")}, {}, 600.0, nonce)


WORK = [Work(float(i), 10.0 * i) for i in range(6)]


def test_each_trial_is_a_submission_of_its_own_without_the_sweep() -> None:
    spec = swept()
    jobs = expand(submission(spec), WORK)
    assert [job.spec for job in jobs] == list(spec.trials().values())
    assert all(job.spec.sweep is None for job in jobs)
    assert [job.num_positions for job in jobs] == [0, 1, 2, 3, 4, 5]
    assert [job.num_bytes for job in jobs] == [0, 10, 20, 30, 40, 50]
    places = [job.place for job in jobs if job.place]
    assert [(place.index, place.size) for place in places] == [(i, 6) for i in range(6)]
    assert len({place.array for place in places}) == 1
    assert places[0].values == {"encoder.hidden_size": 8, "training.learning_rate": 0.1}


def test_the_same_sweep_is_the_same_array_and_a_forced_one_another() -> None:
    keys = [job.idempotency_key for job in expand(submission(swept()), WORK)]
    assert len(set(keys)) == 6
    assert [job.idempotency_key for job in expand(submission(swept()), WORK)] == keys
    forced = expand(submission(swept(), nonce="1"), WORK)
    assert not {job.idempotency_key for job in forced} & set(keys)


def test_a_trial_is_not_the_job_of_the_same_spec_alone() -> None:
    """Else an array would take up a job that others submitted, or lack one."""
    first = expand(submission(swept()), WORK)[0]
    assert submission(first.spec).idempotency_key != first.idempotency_key


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sweep": None}, "an array is of a spec with a sweep"),
        ({"sweep": {"over": RATES, "halving": {"first": 2}}}, "sweep.halving"),
        ({"sweep": {"over": RATES, "concurrent": 2}}, "sweep.concurrent"),
        ({"promote": {"alias": "production"}}, "would take production, the best or not"),
        ({"promote": {"alias": "staging", "when": "accuracy > 0.5"}}, "would take staging"),
    ],
)
def test_what_no_array_can_be_made_of_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        check_array(swept(**changes))


def test_a_gate_against_the_incumbent_lets_the_best_win() -> None:
    check_array(swept(promote={"when": "accuracy > incumbent.accuracy"}))
    check_array(swept())
