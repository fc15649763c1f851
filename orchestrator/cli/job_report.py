"""A job for people and for scripts: its row in a table, its fields, and why it waits."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Any

from orchestrator.cli.output import number, when
from orchestrator.cli.train_table import steps_of
from orchestrator.domain.digest import short
from orchestrator.domain.job import Attempt, Fault, Job, JobState

if TYPE_CHECKING:
    from orchestrator.sdk import Tutti

COLUMNS = ("job", "task", "state", "step", "best", "priority", "owner", "version", "submitted")
COLUMNS_TO_ERROR = (*COLUMNS, "error")
WHOSE = {
    Fault.USER: "the job's own fault",
    Fault.MACHINE: "the machine's fault",
    Fault.PREEMPTION: "nobody's fault",
}


def job_json(job: Job) -> dict[str, Any]:
    """A job as --json prints it."""
    options = job.options
    return {
        "id": job.id,
        "task": job.task,
        "state": job.state.value,
        "version": job.version,
        "error": job.error,
        "owner": job.owner,
        "priority": options.priority,
        "max_attempts": options.max_attempts,
        "time_limit_s": options.time_limit_s,
        "not_before": _iso(options.not_before),
        "after": list(options.after),
        "key": options.key,
        "faults": job.faults,
        "gang": job.gang,
        "is_pause_asked": job.is_pause_asked,
        "array": asdict(job.submission.place) if job.submission.place else None,
        "base_fingerprint": job.submission.base_fingerprint,
        "spec_digest": job.submission.spec.digest(),
        "progress": dict(job.progress),
        "outcome": dict(job.outcome),
        "created_at": job.created_at.isoformat(),
        "started_at": _iso(job.started_at),
        "finished_at": _iso(job.finished_at),
    }


def job_row(job: Job) -> list[str]:
    """A job's cells below COLUMNS_TO_ERROR."""
    step, num_steps = steps_of(job)
    return [
        short(job.id),
        job.task,
        state_of(job),
        f"{step}/{num_steps}",
        number(job.progress.get("best")),
        str(job.options.priority),
        job.owner,
        f"{job.task}@{job.version}" if job.version else "",
        when(job.created_at),
        (job.error or "").strip().partition("\n")[0][:80],
    ]


def state_of(job: Job) -> str:
    return f"{job.state.value}, pause asked" if job.is_pause_asked else job.state.value


def job_fields(job: Job, waits_for: Sequence[str]) -> dict[str, str]:
    """What `tutti jobs show` prints of a job."""
    spec, options = job.submission.spec, job.options
    step, num_steps = steps_of(job)
    fields = {
        "job": job.id,
        "task": job.task,
        "state": state_of(job),
        "waits": "; ".join(waits_for),
        "owner": job.owner,
        "priority": str(options.priority),
        "key": options.key or "",
        "array": _place(job),
        "gang": job.gang or "",
        "step": f"{step} of {num_steps}",
        "stage": str(job.progress.get("stage", "")),
        "best": number(job.progress.get("best")),
        "faults": f"{job.faults} of {options.max_attempts}" if job.faults else "",
        "time limit": f"{options.time_limit_s:g} s of training" if options.time_limit_s else "",
        "version": f"{job.task}@{job.version}" if job.version else "",
        "base": f"{spec.base} ({short(job.submission.base_fingerprint)})",
        "template": spec.template,
        "rows": ", ".join(f"{n} {split}" for split, n in job.submission.num_rows.items()),
        "submitted": when(job.created_at),
        "started": when(job.started_at),
        "finished": when(job.finished_at),
        "promoted to": str(job.outcome.get("alias") or ""),
        "not promoted": "; ".join(job.outcome.get("refusals", ())),
        "error": job.error or "",
    }
    return {name: value for name, value in fields.items() if value}


def reasons_to_wait(tutti: "Tutti", job: Job) -> list[str]:
    """Why a job is not trained now, in plain words; nothing for one that is, or that has ended."""
    if job.state == JobState.PAUSED:
        return [f"paused: `tutti jobs resume {short(job.id)}` goes on"]
    if job.state != JobState.QUEUED:
        return ["its pause is asked: it stops at its next step"] if job.is_pause_asked else []
    reasons = []
    first = [tutti.job(job_id) for job_id in job.options.after]
    waiting = [each for each in first if each.state != JobState.SUCCEEDED]
    if waiting:
        named = ", ".join(f"{short(each.id)} ({each.task}, {each.state})" for each in waiting)
        reasons.append(f"for jobs to succeed: {named}")
    moment = job.options.not_before
    if moment is not None and moment > tutti.now():
        reasons.append(f"not before {when(moment)}")
    reasons += _reasons_of_others(tutti, job)
    return reasons


def _reasons_of_others(tutti: "Tutti", job: Job) -> list[str]:
    """What a job's neighbours have to do with it: its owner's quota, and who trains at all."""
    if tutti.leader() is None:
        return ["no controller is up: start one with `tutti controller` or `tutti train`"]
    quota = next((each for each in tutti.quotas() if each.owner == job.owner), None)
    if quota is not None and quota.max_running is not None:
        num_held = sum(held.owner == job.owner for held in tutti.parts.jobs.held())
        if num_held >= quota.max_running:
            return [f"{job.owner} has {num_held} of at most {quota.max_running} jobs running"]
    return []


def attempt_line(attempt: Attempt) -> str:
    """One attempt: how it ended, why, whose fault that was, in which gang, and how long it took."""
    cause = f": {attempt.cause}" if attempt.cause else ""
    details = [WHOSE[attempt.fault]] if attempt.fault else []
    if attempt.gang:
        details.append(f"in {attempt.gang}")
    if attempt.finished_at is not None:
        details.append(f"{(attempt.finished_at - attempt.started_at).total_seconds():.0f} s")
    text = f"attempt {attempt.number}  {attempt.outcome or 'running'}{cause}"
    return f"{text} ({', '.join(details)})" if details else text


def array_row(job: Job) -> list[str]:
    """A job of an array, below trial, job, its values, state, step, best, version, and why it
    failed or its prompt was not promoted."""
    place = job.submission.place
    step, num_steps = steps_of(job)
    values = place.values.values() if place else ()
    why = job.error or "; ".join(job.outcome.get("refusals", ()))
    return [
        str(place.index if place else ""),
        short(job.id),
        *_texts(values),
        state_of(job),
        f"{step}/{num_steps}",
        number(job.progress.get("best")),
        f"{job.task}@{job.version}" if job.version else "",
        why.strip().partition("\n")[0][:80],
    ]


def _place(job: Job) -> str:
    place = job.submission.place
    if place is None:
        return ""
    values = ", ".join(map(" ".join, zip(place.values, _texts(place.values.values()), strict=True)))
    return f"{place.array}, trial {place.index} of {place.size}: {values}"


def _texts(values: Iterable[Any]) -> list[str]:
    return [f"{value:.4g}" if isinstance(value, float) else str(value) for value in values]


def trial_row(trial: Mapping[str, Any]) -> list[str]:
    """A trial of a sweep, below trial, its values, steps, best, and how it ended."""
    values = _texts(trial["values"].values())
    best = number(trial["best"], digits=3)
    return [str(trial["trial"]), *values, str(trial["steps"]), best, trial["state"]]


def _iso(moment: datetime | None) -> str | None:
    return moment.isoformat() if moment else None
