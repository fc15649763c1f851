"""`tutti jobs`: what is queued, running and done."""

from collections.abc import Mapping
from typing import Any

import click

from orchestrator.cli.output import (
    as_json_option,
    note,
    number,
    print_fields,
    print_json,
    print_table,
    when,
)
from orchestrator.domain.digest import short
from orchestrator.domain.job import Job, JobState


@click.group("jobs")
def command() -> None:
    """See queued, running and finished jobs."""


@command.command("list")
@click.option("--state", "states", multiple=True, type=click.Choice([s.value for s in JobState]))
@click.option("--task", help="Jobs of one task.")
@click.option("--limit", default=100, show_default=True, type=click.IntRange(1, 100_000))
@as_json_option
def list_(states: tuple[str, ...], task: str | None, limit: int, as_json: bool) -> None:
    """List jobs, the newest first."""
    from orchestrator.sdk import Tutti

    with Tutti() as tutti:
        jobs = tutti.jobs([JobState(state) for state in states] or None, task, limit)
    if as_json:
        print_json([job_json(job) for job in jobs])
    elif jobs:
        columns = ("job", "task", "state", "step", "best", "version", "submitted", "error")
        print_table(columns, [_row(job) for job in jobs])
    else:
        note("no jobs: submit some with `tutti submit SPEC...`")


@command.command("show")
@click.argument("job_id", metavar="JOB")
@as_json_option
def show(job_id: str, as_json: bool) -> None:
    """Show one job; JOB is its id or the start of it."""
    from orchestrator.sdk import Tutti

    with Tutti() as tutti:
        job = tutti.job(job_id)
        attempts = list(tutti.parts.jobs.attempts(job.id))
        made = tutti.prompt(f"{job.task}@{job.version}") if job.version else None
        trials = tutti.trials(made) if made and job.submission.spec.sweep else []
    if as_json:
        print_json(job_json(job) | {"attempts": attempts, "trials": trials})
        return
    print_fields(_fields(job))
    for attempt in attempts:
        outcome = attempt.outcome or "running"
        cause = f": {attempt.cause}" if attempt.cause else ""
        click.echo(f"attempt {attempt.number}  {outcome}{cause}")
    if trials:
        columns = ("trial", *trials[0]["values"], "steps", "best", "")
        print_table(columns, [_trial_row(trial) for trial in trials])


def job_json(job: Job) -> dict[str, Any]:
    """A job as --json prints it."""
    return {
        "id": job.id,
        "task": job.task,
        "state": job.state.value,
        "version": job.version,
        "error": job.error,
        "base_fingerprint": job.submission.base_fingerprint,
        "spec_digest": job.submission.spec.digest(),
        "progress": dict(job.progress),
        "outcome": dict(job.outcome),
        "created_at": job.created_at.isoformat(),
        "started_at": job.started_at.isoformat() if job.started_at else None,
        "finished_at": job.finished_at.isoformat() if job.finished_at else None,
    }


def _row(job: Job) -> list[str]:
    step = f"{job.progress.get('step', 0)}/{_num_steps(job)}"
    version = f"{job.task}@{job.version}" if job.version else ""
    error = (job.error or "").splitlines()[0][:80] if job.error else ""
    return [
        short(job.id),
        job.task,
        job.state.value,
        step,
        number(job.progress.get("best")),
        version,
        when(job.created_at),
        error,
    ]


def _trial_row(trial: Mapping[str, Any]) -> list[str]:
    values = (f"{v:.4g}" if isinstance(v, float) else str(v) for v in trial["values"].values())
    best = number(trial["best"], digits=3)
    return [str(trial["trial"]), *values, str(trial["steps"]), best, trial["state"]]


def _num_steps(job: Job) -> int:
    return int(job.progress.get("num_steps", job.submission.spec.training.steps))


def _fields(job: Job) -> dict[str, str]:
    spec = job.submission.spec
    fields = {
        "job": job.id,
        "task": job.task,
        "state": job.state.value,
        "step": f"{job.progress.get('step', 0)} of {_num_steps(job)}",
        "stage": str(job.progress.get("stage", "")),
        "best": number(job.progress.get("best")),
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
