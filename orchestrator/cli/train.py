"""`tutti train`: submit, train here with a live view, register, promote, tell MLflow."""

from pathlib import Path

import click

from orchestrator.cli.jobs import job_json
from orchestrator.cli.output import as_json_option, note, print_json
from orchestrator.cli.submit import force_option, specs_argument
from orchestrator.domain.job import Job, JobState


@click.command("train")
@specs_argument
@force_option
@as_json_option
def command(specs: tuple[Path, ...], force: bool, as_json: bool) -> None:
    """Train SPECS together on this machine (or TUTTI_RAY_ADDRESS) and wait.

    Each finished task becomes a prompt version; its gate decides about its alias. What is unchanged
    is not trained again. Without SPECS, whatever is queued is trained.
    """
    from orchestrator.cli.train_view import TrainView
    from orchestrator.sdk import Submitted, Tutti

    with Tutti() as tutti:
        view = TrainView(tutti.settings.logs)

        def tell(submitted: list[Submitted]) -> None:
            for each in submitted:
                for warning in each.warnings:
                    note(f"{each.job.task}: {warning}")
                if not each.is_new and each.job.state == JobState.SUCCEEDED:
                    note(
                        f"{each.job.task}: unchanged since {each.job.task}@{each.job.version}, "
                        "nothing to train (--force trains again)"
                    )

        with view:
            jobs = tutti.train(specs, force, view.show, tell)
        if any(view.has_news(job) for job in jobs):
            note("telling MLflow")
        delivery = tutti.deliver()
        if delivery.error:
            note(f"MLflow has not heard all yet (it will, at the next run): {delivery.error}")
        _report(tutti, jobs, as_json)
    if any(job.state != JobState.SUCCEEDED for job in jobs):
        raise SystemExit(1)


def _report(tutti: object, jobs: list[Job], as_json: bool) -> None:
    from orchestrator.cli.prompts import print_evidence, version_json
    from orchestrator.sdk import Tutti

    assert isinstance(tutti, Tutti)
    done = [job for job in jobs if job.version is not None]
    versions = [tutti.prompt(f"{job.task}@{job.version}") for job in done]
    if as_json:
        found = {version.ref: version_json(version) for version in versions}
        print_json(
            [job_json(job) | {"prompt": found.get(f"{job.task}@{job.version}")} for job in jobs]
        )
    elif versions:
        print_evidence(versions)
    elif not jobs:
        note("nothing is queued: give task specs, or submit some with `tutti submit`")
    for job in jobs:
        if job.state == JobState.FAILED:
            note(f"{job.task}: failed: {job.error}")
