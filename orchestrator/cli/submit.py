"""`tutti submit`: queue specs and return."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from orchestrator.cli.jobs import job_json
from orchestrator.cli.output import as_json_option, note, print_json
from orchestrator.domain.digest import short
from orchestrator.domain.job import JobState

if TYPE_CHECKING:
    from orchestrator.sdk import Submitted

specs_argument = click.argument("specs", nargs=-1, type=click.Path(path_type=Path))
force_option = click.option("--force", is_flag=True, help="Train again what is unchanged.")


def tell_submitted(submitted: "list[Submitted]") -> None:
    """Say what deserves a word about submissions: warnings, and what is done already."""
    for each in submitted:
        for warning in each.warnings:
            note(f"{each.job.task}: {warning}")
        if not each.is_new and each.job.state == JobState.SUCCEEDED:
            note(
                f"{each.job.task}: unchanged since {each.job.task}@{each.job.version}, "
                "nothing to train (--force trains again)"
            )


@click.command("submit")
@specs_argument
@force_option
@as_json_option
def command(specs: tuple[Path, ...], force: bool, as_json: bool) -> None:
    """Check SPECS and their data, and queue a training job for each.

    Nothing is written unless all of them are right. The same spec on the same data gives the same
    job. Queued jobs are trained by `tutti train`, here or elsewhere.
    """
    from orchestrator.sdk import Tutti

    if not specs:
        raise click.UsageError("give at least one task spec (a YAML file)")
    with Tutti() as tutti:
        submitted = tutti.submit(specs, force)
    tell_submitted(submitted)
    if as_json:
        print_json([job_json(each.job) | {"is_new": each.is_new} for each in submitted])
        return
    for each in submitted:
        state = each.job.state.value if each.is_new else f"unchanged, {each.job.state.value}"
        click.echo(f"{short(each.job.id)}  {each.job.task}  {state}")
