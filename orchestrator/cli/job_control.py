"""`tutti jobs cancel | retry | pause | resume | set-priority | quota`: what users do to jobs."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli.job_report import job_json, state_of
from orchestrator.cli.output import as_json_option, note, print_json, print_table
from orchestrator.cli.submit_options import DURATION
from orchestrator.domain.digest import short
from orchestrator.domain.errors import InvalidInput, TuttiError
from orchestrator.domain.job import Job, Quota
from orchestrator.domain.job_array import PREFIX

if TYPE_CHECKING:
    from orchestrator.sdk import Tutti

jobs_argument = click.argument("job_ids", metavar="JOB|ARRAY...", nargs=-1, required=True)
#: A negative number is no option.
NEGATIVE = {"ignore_unknown_options": True}


@click.command("cancel")
@jobs_argument
@as_json_option
def cancel(job_ids: tuple[str, ...], as_json: bool) -> None:
    """End jobs that have not ended; a running one stops at its next step."""
    _each(job_ids, as_json, lambda tutti, job_id: tutti.cancel(job_id))


@click.command("retry")
@jobs_argument
@click.option("--time-limit", type=DURATION, help="A new one, of all its training: 90s, 30m, 2h.")
@as_json_option
def retry(job_ids: tuple[str, ...], time_limit: float | None, as_json: bool) -> None:
    """Queue failed or cancelled jobs again; they go on from their checkpoints.

    What they have trained counts: a job that its time limit ended needs a higher --time-limit.
    Submitted again, a job starts afresh.
    """
    _each(job_ids, as_json, lambda tutti, job_id: tutti.retry(job_id, time_limit))


@click.command("pause")
@jobs_argument
@as_json_option
def pause(job_ids: tuple[str, ...], as_json: bool) -> None:
    """Take jobs out of the queue; a running one stops at its next step, with a checkpoint."""
    _each(job_ids, as_json, lambda tutti, job_id: tutti.pause(job_id))


@click.command("resume")
@jobs_argument
@as_json_option
def resume(job_ids: tuple[str, ...], as_json: bool) -> None:
    """Put paused jobs back into the queue; they go on from their checkpoints."""
    _each(job_ids, as_json, lambda tutti, job_id: tutti.resume(job_id))


@click.command("set-priority", context_settings=NEGATIVE)
@click.argument("job_id", metavar="JOB|ARRAY")
@click.argument("priority", metavar="N", type=int)
@as_json_option
def set_priority(job_id: str, priority: int, as_json: bool) -> None:
    """Let a job go before those of a lower priority."""
    _each([job_id], as_json, lambda tutti, each: tutti.set_priority(each, priority))


@click.command("quota")
@click.argument("owner", required=False)
@click.option("--max-running", metavar="N|none", help="Jobs that run at a time, at most.")
@click.option("--share", type=float, help="Its part, beside other owners' of equal priority.")
@as_json_option
def quota(owner: str | None, max_running: str | None, share: float | None, as_json: bool) -> None:
    """Show the owners' quotas, or set OWNER's."""
    from orchestrator.sdk import Tutti

    is_change = max_running is not None or share is not None
    if owner is None and is_change:
        raise click.UsageError("say whose quota to set: tutti jobs quota OWNER --max-running N")
    changes: dict[str, Any] = {} if share is None else {"share": share}
    if max_running is not None:
        changes["max_running"] = _bound(max_running)
    with Tutti() as tutti:
        found = {each.owner: each for each in tutti.quotas()}
        if owner is not None and is_change:
            found[owner] = replace(found.get(owner, Quota(owner)), **changes)
            tutti.set_quota(found[owner])
    shown = list(found.values()) if owner is None else [found.get(owner, Quota(owner))]
    if as_json:
        print_json(shown)
    elif shown:
        rows = [[q.owner, _bound_text(q.max_running), f"{q.share:g}"] for q in shown]
        print_table(("owner", "max running", "share"), rows)
    else:
        note("no quotas: owners share equally, without bounds")


CONTROLS = (cancel, retry, pause, resume, set_priority, quota)


def _each(job_ids: Sequence[str], as_json: bool, act: "Callable[[Tutti, str], Job]") -> None:
    """Do one thing to every job, and to every job of an array that it can be done to. All must be
    there; jobs that were named and that it cannot be done to are told."""
    from orchestrator.sdk import Tutti

    done: list[Job] = []
    faults: list[str] = []
    with Tutti() as tutti:
        found = _found(tutti, job_ids)
        for job_id, array in found.items():
            try:
                done.append(act(tutti, job_id))
            except InvalidInput as error:
                if array is None:
                    faults.append(str(error))
        if not done and not faults:
            raise InvalidInput("there is no job of the array that this can be done to")
    if as_json and done:
        print_json([job_json(job) for job in done])
    elif done:
        for job in done:
            click.echo(f"{short(job.id)}  {job.task}  {state_of(job)}")
    if faults:
        raise (TuttiError if done else InvalidInput)("\n".join(faults))


def _found(tutti: "Tutti", names: Sequence[str]) -> dict[str, str | None]:
    """The ids that names of jobs and arrays stand for, each with the array it came by."""
    found: dict[str, str | None] = {}
    for name in names:
        if name.startswith(PREFIX):
            found |= {job.id: name for job in tutti.array(name)}
        else:
            found[tutti.job(name).id] = None
    return found


def _bound(text: str) -> int | None:
    if text == "none":
        return None
    if not text.isdigit():
        raise click.BadParameter(
            f"{text!r} is not a number of jobs: give 0 or more, or none", param_hint="--max-running"
        )
    return int(text)


def _bound_text(max_running: int | None) -> str:
    return "none" if max_running is None else str(max_running)
