"""`tutti train`: submit, train here with a live view, register, promote, tell MLflow."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from orchestrator.cli.jobs import job_json
from orchestrator.cli.output import as_json_option, note, print_json
from orchestrator.cli.submit import force_option, specs_argument, tell_submitted
from orchestrator.domain.errors import TuttiError
from orchestrator.domain.job import Job, JobState

if TYPE_CHECKING:
    from orchestrator.domain.prompt_version import PromptVersion
    from orchestrator.sdk import Tutti


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
    from orchestrator.sdk import Tutti

    with Tutti() as tutti:
        if specs:
            note(f"checking {len(specs)} {'spec' if len(specs) == 1 else 'specs'} and their data")
        try:
            with TrainView(tutti.settings.logs) as view:
                jobs = tutti.train(specs, force, view.show, tell_submitted)
        except KeyboardInterrupt:
            raise TuttiError(
                "interrupted; unfinished jobs are back in the queue",
                "Run `tutti train` to train them.",
            ) from None
        _tell_mlflow(tutti, any(view.has_news(job) for job in jobs))
        _report(tutti, jobs, as_json)
    if any(job.state != JobState.SUCCEEDED for job in jobs):
        raise SystemExit(1)


def _tell_mlflow(tutti: "Tutti", has_news: bool) -> None:
    """Deliver what MLflow has not heard, now or from before."""
    if has_news:
        note("telling MLflow")
    delivery = tutti.deliver()
    if delivery.error:
        note(f"MLflow has not heard all yet (it will, at the next run): {delivery.error}")


def _report(tutti: "Tutti", jobs: list[Job], as_json: bool) -> None:
    from orchestrator.cli.prompts import print_evidence, version_json

    refs = [f"{job.task}@{job.version}" for job in jobs if job.version is not None]
    versions = {ref: tutti.prompt(ref) for ref in refs}
    if as_json:
        print_json(
            [_json(job, {ref: version_json(v) for ref, v in versions.items()}) for job in jobs]
        )
    elif versions:
        print_evidence(list(versions.values()))
        _tell_where_to_look(tutti, next(iter(versions.values())))
    elif not jobs:
        note("nothing is queued: give task specs, or submit some with `tutti submit`")
    for job in jobs:
        if job.state == JobState.FAILED:
            note(f"{job.task}: failed: {job.error}")


def _tell_where_to_look(tutti: "Tutti", version: "PromptVersion") -> None:
    """The learning curves, and how to browse them."""
    picture = tutti.parts.mirror.picture(version)
    if picture is not None:
        note(f"learning curve of {version.ref}: {picture}")
    uri = tutti.settings.mlflow_tracking_uri
    is_server = uri.startswith("http")
    note(f"all runs: {uri if is_server else f'mlflow ui --backend-store-uri {uri}'}")


def _json(job: Job, prompts: dict[str, dict[str, object]]) -> dict[str, object]:
    return job_json(job) | {"prompt": prompts.get(f"{job.task}@{job.version}")}
