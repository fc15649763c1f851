"""`tutti submit`: queue specs and return, or watch what becomes of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli.job_report import job_json
from orchestrator.cli.output import as_json_option, note, print_json
from orchestrator.cli.submit_options import read_options, with_queue_options
from orchestrator.domain.digest import short
from orchestrator.domain.errors import TuttiError
from orchestrator.domain.job import Job, JobOptions, JobState

if TYPE_CHECKING:
    from orchestrator.sdk import Submitted, Tutti

specs_argument = click.argument("specs", nargs=-1, type=click.Path(path_type=Path))
force_option = click.option("--force", is_flag=True, help="Train again what is unchanged.")


array_option = click.option(
    "--array",
    "as_arrays",
    is_flag=True,
    help="Make each trial of a sweep a job of its own; the gate picks the best.",
)


def tell_submitted(submitted: "Sequence[Submitted]", options: JobOptions) -> None:
    """Say what deserves a word about submissions: warnings, and what is there already."""
    for each in submitted:
        job = each.job
        for warning in each.warnings:
            note(f"{job.task}: {warning}")
        place = job.submission.place
        if place is not None and place.index == 0:
            note(f"{job.task}: {place.array}, {place.size} jobs")
        if each.is_new:
            continue
        if job.state == JobState.SUCCEEDED:
            note(
                f"{job.task}: unchanged since {job.task}@{job.version}, "
                "nothing to train (--force trains again)"
            )
        elif options != JobOptions() and job.options != options:
            note(
                f"{job.task}: submitted before, its options stay as they were "
                "(`tutti jobs set-priority` changes the priority)"
            )


@click.command("submit")
@specs_argument
@with_queue_options
@force_option
@array_option
@click.option("--wait", is_flag=True, help="Wait until the jobs have ended.")
@click.option("--follow", is_flag=True, help="Wait, and show how they do and their logs.")
@as_json_option
def command(
    specs: tuple[Path, ...],
    force: bool,
    as_arrays: bool,
    wait: bool,
    follow: bool,
    as_json: bool,
    **asked: Any,
) -> None:
    """Check SPECS and their data, and queue a training job for each.

    Nothing is written unless all of them are right. The same spec on the same data gives the same
    job. Queued jobs are trained by a `tutti controller` or a `tutti train`, here or elsewhere.
    """
    from orchestrator.sdk import Tutti

    if not specs:
        raise click.UsageError("give at least one task spec (a YAML file)")
    with Tutti() as tutti:
        options = read_options(tutti.now, **asked)
        submitted = tutti.submit(specs, force, options, as_arrays)
        tell_submitted(submitted, options)
        jobs = [each.job for each in submitted]
        if wait or follow:
            jobs = _watch(tutti, submitted, follow)
    if as_json:
        is_new = [each.is_new for each in submitted]
        print_json([job_json(job) | {"is_new": new} for job, new in zip(jobs, is_new, strict=True)])
    else:
        for job, each in zip(jobs, submitted, strict=True):
            state = job.state.value if each.is_new else f"unchanged, {job.state.value}"
            click.echo(f"{short(job.id)}  {job.task}  {state}")
    if (wait or follow) and any(job.state != JobState.SUCCEEDED for job in jobs):
        raise SystemExit(1)


def _watch(tutti: "Tutti", submitted: "Sequence[Submitted]", follows: bool) -> list[Job]:
    """Wait for the jobs' ends. Ctrl-C ends the waiting alone."""
    from orchestrator.cli.train_view import TrainView

    ids = [each.job.id for each in submitted]
    known = [each.job.id for each in submitted if each.job.state.is_terminal]
    try:
        with TrainView(tutti.prompt, follows=follows, known=known) as view:
            return tutti.wait(ids, view.show if follows else view.tell_state)
    except KeyboardInterrupt:
        raise TuttiError(
            "stopped watching; the jobs stay as they are",
            "Watch them with `tutti jobs list --watch`, end them with `tutti jobs cancel`.",
        ) from None
