"""`tutti train`: submit, train here with a live view, register, promote, tell MLflow."""

import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli.interrupt import interrupts_set
from orchestrator.cli.job_report import job_json
from orchestrator.cli.output import as_json_option, note, print_json
from orchestrator.cli.submit import array_option, force_option, specs_argument, tell_submitted
from orchestrator.cli.submit_options import read_options, with_run_options
from orchestrator.domain.errors import InvalidInput, TuttiError
from orchestrator.domain.job import Job, JobState

if TYPE_CHECKING:
    from orchestrator.cli.train_view import TrainView
    from orchestrator.domain.prompt_version import PromptVersion
    from orchestrator.job_watch import Sight
    from orchestrator.sdk import Tutti

ANSWERS = {"d": "detach", "c": "cancel", "w": "wait"}
QUESTION = "interrupted: d(etach: the jobs stay queued), c(ancel them), or w(ait on)?"
on_interrupt_option = click.option(
    "--on-interrupt",
    type=click.Choice(["ask", "detach", "cancel"]),
    default="ask",
    show_default=True,
    help="What Ctrl-C does to the jobs; without a terminal to ask on, it detaches.",
)


@click.command("train")
@specs_argument
@with_run_options
@force_option
@array_option
@on_interrupt_option
@as_json_option
def command(
    specs: tuple[Path, ...],
    force: bool,
    as_arrays: bool,
    on_interrupt: str,
    as_json: bool,
    **asked: Any,
) -> None:
    """Train SPECS together on this machine (or TUTTI_RAY_ADDRESS) and wait.

    Each finished task becomes a prompt version; its gate decides about its alias. What is unchanged
    is not trained again. Without SPECS, whatever is queued is trained. Where a controller leads
    already, that one trains, and this command watches.
    """
    from orchestrator.sdk import Tutti

    with Tutti() as tutti:
        options = read_options(tutti.now, **asked)
        if specs:
            note(f"checking {len(specs)} {'spec' if len(specs) == 1 else 'specs'} and their data")
        submitted = tutti.submit(specs, force, options, as_arrays)
        tell_submitted(submitted, options)
        ids = [each.job.id for each in submitted] if specs else tutti.undone()
        known = [each.job.id for each in submitted if each.job.state.is_terminal]
        jobs = Training(tutti, ids, on_interrupt).run(known)
        _tell_mlflow(tutti, any(job.id not in known for job in jobs))
        _report(tutti, jobs, as_json)
    if any(job.state != JobState.SUCCEEDED for job in jobs):
        raise SystemExit(1)


class Training:
    """One look-on at a training, and what Ctrl-C does to it; a second Ctrl-C detaches at once."""

    def __init__(self, tutti: "Tutti", ids: Sequence[str], on_interrupt: str) -> None:
        self._tutti, self._ids, self._on_interrupt = tutti, ids, on_interrupt
        self._interrupt = threading.Event()
        self._leader: str | None = None

    def run(self, known: Sequence[str]) -> list[Job]:
        """Train until all jobs have ended; return them as they ended. Raises TuttiError when the
        user leaves before."""
        from orchestrator.cli.train_view import TrainView

        logs = self._tutti.settings.logs
        try:
            with (
                interrupts_set(self._interrupt),
                TrainView(self._tutti.prompt, logs, known=known) as view,
            ):
                return self._tutti.train_jobs(self._ids, lambda sight: self._see(view, sight))
        except KeyboardInterrupt:
            raise self._left() from None

    def _see(self, view: "TrainView", sight: "Sight") -> None:
        self._leader = sight.leader
        view.show(sight)
        if self._interrupt.is_set():
            self._answer(view, sight)

    def _answer(self, view: "TrainView", sight: "Sight") -> None:
        choice = self._on_interrupt
        if choice == "ask":
            can_ask = view.is_terminal and sys.stdin.isatty()
            choice = ANSWERS.get(view.ask(QUESTION)[:1], "detach") if can_ask else "detach"
        self._interrupt.clear()
        if choice == "detach":
            raise KeyboardInterrupt
        if choice == "cancel":
            for job in sight.jobs:
                _cancel(self._tutti, job)

    def _left(self) -> TuttiError:
        from orchestrator.holder import is_here, place

        if self._leader is not None and not is_here(self._leader):
            return TuttiError(
                f"stopped watching; the jobs stay with the controller at {place(self._leader)}",
                "Watch them with `tutti jobs list --watch`, end them with `tutti jobs cancel`.",
            )
        return TuttiError(
            "interrupted; unfinished jobs are back in the queue",
            "Run `tutti train` to train them.",
        )


def _cancel(tutti: "Tutti", job: Job) -> None:
    try:
        if not job.state.is_terminal:
            tutti.cancel(job.id)
    except InvalidInput:
        return  # it has ended meanwhile


def _tell_mlflow(tutti: "Tutti", has_news: bool) -> None:
    """Deliver what MLflow has not heard, now or from before."""
    if has_news:
        note("telling MLflow")
    delivery = tutti.deliver()
    if delivery.error:
        note(f"MLflow has not heard all yet (it will, at the next run): {delivery.error}")


def _report(tutti: "Tutti", jobs: list[Job], as_json: bool) -> None:
    from orchestrator.cli.prompt_report import print_evidence, version_json

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
