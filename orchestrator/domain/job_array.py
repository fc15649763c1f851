"""A sweep as an array: each trial a job, with a version of its own; the gate picks the best.

Where a sweep that is one job trains on one rank and halves its trials, an array takes as many
workers and gangs as there are, and each of its jobs is seen, stopped and tried again by itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from orchestrator.domain.errors import InvalidInput
from orchestrator.domain.gate_term import INCUMBENT
from orchestrator.domain.job import ArrayPlace, Submission
from orchestrator.domain.task_spec import TaskSpec

PREFIX = "array-"
_NUM_DIGITS = 12


@dataclass(frozen=True)
class Work:
    """A trial's positions in one training step, and the bytes it takes of a worker's memory."""

    num_positions: float
    num_bytes: float


def check_array(spec: TaskSpec) -> None:
    """Raise InvalidInput for a spec that cannot be an array."""
    if spec.sweep is None:
        raise InvalidInput(
            f"{spec.task}: an array is of a spec with a sweep", "Submit it without --array."
        )
    for name in ("halving", "concurrent"):
        if getattr(spec.sweep, name) is not None:
            raise InvalidInput(
                f"{spec.task}: sweep.{name} is about trials that are neighbours in one job",
                f"Submit it without --array, or remove sweep.{name}.",
            )
    if spec.promote is not None and INCUMBENT not in (spec.promote.when or ""):
        raise InvalidInput(
            f"{spec.task}: each job of the array would take {spec.promote.alias}, the best or not",
            f"Give a gate such as `promote.when: {spec.evaluation.metric} > "
            f"{INCUMBENT}.{spec.evaluation.metric}`.",
        )


def expand(sweep: Submission, work: Sequence[Work]) -> list[Submission]:
    """A submission for each trial of the sweep's, in order. The same sweep gives the same array."""
    array = PREFIX + sweep.idempotency_key[:_NUM_DIGITS]
    trials = list(sweep.spec.trials().values())
    return [
        replace(
            sweep,
            spec=trial,
            num_positions=part.num_positions,
            num_bytes=part.num_bytes,
            place=ArrayPlace(array, index, len(trials), sweep.spec.swept_values(trial)),
        )
        for index, (trial, part) in enumerate(zip(trials, work, strict=True))
    ]
