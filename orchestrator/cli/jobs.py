"""`tutti jobs`: what is queued, running and done, and why. What users do: job_control.py."""

import json
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from orchestrator.cli.job_control import CONTROLS
from orchestrator.cli.job_report import (
    COLUMNS_TO_ERROR,
    array_row,
    attempt_line,
    job_fields,
    job_json,
    job_row,
    reasons_to_wait,
    trial_row,
)
from orchestrator.cli.output import (
    as_json_option,
    note,
    print_fields,
    print_json,
    print_table,
    when,
)
from orchestrator.domain.job import Job, JobState, LogLine
from orchestrator.domain.job_array import PREFIX

if TYPE_CHECKING:
    from orchestrator.job_watch import Sight

WATCH_S = 1.0


@click.group("jobs")
def command() -> None:
    """See queued, running and finished jobs, and change what becomes of them."""


for _control in CONTROLS:
    command.add_command(_control)


@command.command("list")
@click.option("--state", "states", multiple=True, type=click.Choice([s.value for s in JobState]))
@click.option("--task", help="Jobs of one task.")
@click.option("--owner", help="Jobs of one owner.")
@click.option("--array", help="Jobs of one array.")
@click.option("--limit", default=100, show_default=True, type=click.IntRange(1, 100_000))
@click.option("--watch", is_flag=True, help="Go on showing what changes, until Ctrl-C.")
@as_json_option
def list_(
    states: tuple[str, ...],
    task: str | None,
    owner: str | None,
    array: str | None,
    limit: int,
    watch: bool,
    as_json: bool,
) -> None:
    """List jobs, the newest first."""
    from orchestrator.sdk import Tutti

    if watch and as_json:
        raise click.UsageError("--watch shows a table: leave --json out")
    chosen = [JobState(state) for state in states] or None
    with Tutti() as tutti:
        if watch:
            watch_jobs(lambda: tutti.jobs(chosen, task, owner, limit, array))
            return
        jobs = tutti.jobs(chosen, task, owner, limit, array)
    if as_json:
        print_json([job_json(job) for job in jobs])
    elif jobs:
        print_table(COLUMNS_TO_ERROR, [job_row(job) for job in jobs])
    else:
        note("no jobs: submit some with `tutti submit SPEC...`")


@command.command("show")
@click.argument("job_id", metavar="JOB|ARRAY")
@as_json_option
def show(job_id: str, as_json: bool) -> None:
    """Show one job and what happened to it, or the jobs of an array; JOB is its id or the start of
    it."""
    from orchestrator.sdk import Tutti

    with Tutti() as tutti:
        if job_id.startswith(PREFIX):
            _show_array(tutti.array(job_id), as_json)
            return
        job = tutti.job(job_id)
        attempts = tutti.attempts(job.id)
        waits_for = reasons_to_wait(tutti, job)
        lines = tutti.logs(job.id)
        made = tutti.prompt(f"{job.task}@{job.version}") if job.version else None
        trials = tutti.trials(made) if made and job.submission.spec.sweep else []
    if as_json:
        more = {"attempts": attempts, "trials": trials, "waits_for": waits_for, "lines": lines}
        print_json(job_json(job) | more)
        return
    print_fields(job_fields(job, waits_for))
    for attempt in attempts:
        click.echo(attempt_line(attempt))
    for line in lines:
        _print_line(line)
    if trials:
        columns = ("trial", *trials[0]["values"], "steps", "best", "")
        print_table(columns, [trial_row(trial) for trial in trials])


def _show_array(jobs: list[Job], as_json: bool) -> None:
    if as_json:
        print_json([job_json(job) for job in jobs])
        return
    place = jobs[0].submission.place
    values = place.values if place else {}
    columns = ("trial", "job", *values, "state", "step", "best", "version", "")
    print_table(columns, [array_row(job) for job in jobs])


@command.command("logs")
@click.argument("job_id", metavar="JOB")
@click.option("--follow", is_flag=True, help="Go on until the job has ended.")
@as_json_option
def logs(job_id: str, follow: bool, as_json: bool) -> None:
    """Print what happened to a job; it needs no cluster. With --json, an object a line."""
    from orchestrator.sdk import Tutti

    with Tutti() as tutti:
        job = tutti.job(job_id)
        if not follow:
            for line in tutti.logs(job.id):
                _print_line(line, as_json)
            return

        def tell(sight: "Sight") -> None:
            for _, line in sight.lines:
                _print_line(line, as_json)

        try:
            tutti.wait([job.id], tell)
        except KeyboardInterrupt:
            return  # this is how one leaves


def watch_jobs(fetch: Callable[[], list[Job]]) -> None:
    """Show the jobs that `fetch` gives for as long as they are looked at: redrawn on a terminal,
    elsewhere the lines that have changed. Ctrl-C is how one leaves."""
    try:
        if sys.stdout.isatty():
            _redraw(fetch)
        else:
            _print_changed(fetch)
    except KeyboardInterrupt:
        return


def _redraw(fetch: Callable[[], list[Job]]) -> None:
    from rich.live import Live

    from orchestrator.cli.output import draw_table

    with Live(auto_refresh=False) as live:
        while True:
            table = draw_table(COLUMNS_TO_ERROR, [job_row(job) for job in fetch()])
            live.update(table, refresh=True)
            time.sleep(WATCH_S)


def _print_changed(fetch: Callable[[], list[Job]]) -> None:
    told: dict[str, list[str]] = {}
    while True:
        for job in reversed(fetch()):
            row = job_row(job)
            if told.get(job.id) != row:
                told[job.id] = row
                click.echo("  ".join(cell for cell in row if cell))
        time.sleep(WATCH_S)


def _print_line(line: LogLine, as_json: bool = False) -> None:
    if as_json:
        value = {"number": line.number, "at": line.at.isoformat(), "text": line.text}
        click.echo(json.dumps(value, ensure_ascii=False))
    else:
        click.echo(f"{when(line.at)}  {line.text}")
