"""The end of a job: its version, its promotion and its success, all in one transaction.

The lease fences it first, so of two holders only the one the queue knows can register anything.
"""

from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection, Row

from orchestrator.domain.digest import short
from orchestrator.domain.errors import IntegrityError, InvalidInput
from orchestrator.domain.gate import Gate
from orchestrator.domain.job import JobState, Lease
from orchestrator.domain.prompt_version import Promotion, PromptRef, PromptVersion, TrainedPrompt
from orchestrator.domain.task_spec import PromoteSpec
from orchestrator.registry.attempt_rows import end_attempt
from orchestrator.registry.job_log import write_lines
from orchestrator.registry.lease_fence import lock_fenced, move
from orchestrator.registry.names import require_alias
from orchestrator.registry.promotion import find_incumbent, judge, move_alias
from orchestrator.registry.version_intake import add_version
from orchestrator.registry.version_rows import find_version


@dataclass(frozen=True)
class Completion:
    """What a job came to. `created` is False when the content was a version already; `refusals`
    says why the alias it asked for did not move (also when `promotion` is None without any: no
    promotion was asked for, or the alias pointed there already).
    """

    version: PromptVersion
    created: bool
    promotion: Promotion | None
    refusals: tuple[str, ...]


def complete_job(
    connection: Connection,
    lease: Lease,
    trained: TrainedPrompt,
    promote: PromoteSpec | None,
    actor: str,
) -> Completion:
    """Finish the job of `lease` with `trained`, within the caller's transaction."""
    job = lock_fenced(connection, lease)
    _check_result(job, trained)
    lineage = replace(trained.lineage, job=lease.job_id, attempt=job.attempts, author=job.owner)
    version, created = add_version(connection, replace(trained, lineage=lineage))
    reason = f"job {short(lease.job_id)}"
    promotion, refusals = _promote(connection, version, promote, actor, reason)
    outcome = _outcome(version, created, promotion, refusals)
    values = {"version": version.number, "outcome": outcome, "checkpoint": None}
    move(connection, job, JobState.SUCCEEDED, values)
    end_attempt(connection, lease.job_id, "succeeded")
    made = "made" if created else "came to the content of"
    line = f"attempt {job.attempts} succeeded: it {made} {version.ref}"
    write_lines(connection, [(lease.job_id, line)])
    version = find_version(connection, PromptRef(version.task, version.number))
    return Completion(version, created, promotion, refusals)


def _check_result(job: Row[Any], trained: TrainedPrompt) -> None:
    """A result must be of the job's own task and base."""
    asked = (job.task, job.base_fingerprint)
    given = (trained.task, trained.lineage.base_fingerprint)
    if asked != given:
        raise IntegrityError(
            f"job {short(job.id)} trains {asked[0]} on base {short(asked[1])}, but the result is "
            f"{given[0]} on base {short(given[1])}"
        )


def _promote(
    connection: Connection,
    version: PromptVersion,
    promote: PromoteSpec | None,
    actor: str,
    reason: str,
) -> tuple[Promotion | None, tuple[str, ...]]:
    """Move the alias if its gate holds. A promotion that cannot be never costs the version."""
    if promote is None:
        return None, ()
    try:
        alias = require_alias(promote.alias)
        gate = Gate.parse(promote.when) if promote.when else None
    except (InvalidInput, ValueError) as error:
        return None, (str(error),)
    incumbent = find_incumbent(connection, version.task, alias)
    if incumbent.number == version.number:
        return None, ()
    refusals = judge(connection, gate, version, incumbent)
    if refusals:
        return None, refusals
    promotion = move_alias(connection, version, incumbent, actor=actor, reason=reason, gate=gate)
    return promotion, ()


def _outcome(
    version: PromptVersion,
    created: bool,
    promotion: Promotion | None,
    refusals: tuple[str, ...],
) -> dict[str, Any]:
    """What the job's row keeps of its completion."""
    return {
        "version": version.number,
        "created": created,
        "alias": promotion.alias if promotion else None,
        "refusals": list(refusals),
    }
