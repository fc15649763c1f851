"""`tutti batch`: files of mixed tasks through many prompts."""

from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli.batch_options import decoding_of, map_option, with_decoding_options
from orchestrator.cli.batch_report import report
from orchestrator.cli.output import (
    as_json_option,
    note,
    print_fields,
    print_json,
    print_table,
    when,
)
from orchestrator.domain.batch import BatchMode
from orchestrator.domain.batch_run import BatchRun, BatchState
from orchestrator.domain.digest import short

if TYPE_CHECKING:
    from orchestrator.batch.start import BatchResult
    from orchestrator.sdk import Tutti

COLUMNS = ("run", "state", "rows", "errors", "shards", "input", "output", "started", "worked on by")
run_argument = click.argument("run_id", metavar="RUN")
newest_argument = click.argument("run_id", metavar="[RUN]", required=False)


@click.group("batch")
def command() -> None:
    """Run files of mixed tasks through many prompts."""


command.add_command(report)


@command.command("run")
@click.option(
    "--input",
    "input_path",
    required=True,
    help="JSONL, CSV, TSV or Parquet: a file, folder, 'glob' or fsspec URL.",
)
@click.option(
    "--output", "output_path", required=True, help="A folder; or one file, X.jsonl or X.parquet."
)
@click.option("--prompt", metavar="TASK@ALIAS", help="Answers all rows; else each names its task.")
@map_option
@click.option(
    "--mode",
    type=click.Choice([str(mode) for mode in BatchMode]),
    default=str(BatchMode.AUTO),
    show_default=True,
    help="auto: classify where a version has candidates, else generate.",
)
@click.option("--alias", default="production", show_default=True, help="For rows without one.")
@click.option("--answers", metavar="FIELD", help="The answers that --mode score scores.")
@click.option("--calibrate", is_flag=True, help="Contextual calibration of candidates.")
@with_decoding_options
@click.option("--format", "output_format", type=click.Choice(["jsonl", "parquet"]))
@click.option("--shard-rows", type=int, default=1024, show_default=True)
@as_json_option
def run(
    input_path: str,
    output_path: str,
    prompt: str | None,
    columns: dict[str, str],
    mode: str,
    alias: str,
    answers: str | None,
    calibrate: bool,
    output_format: str | None,
    shard_rows: int,
    as_json: bool,
    **decoding: Any,
) -> None:
    """Answer rows of many tasks; one output row for each input row, in order.

    A row names its task and gives its fields, in JSONL: {"task": "country-continent", "fields":
    {"country": "Kenya"}} or flat, {"task": ..., "country": ...}; columns in CSV and Parquet.
    Optional are "version" (a number or an alias) and "id" (echoed). A row that cannot be answered
    holds an "error". A run that is interrupted or killed goes on with `tutti batch resume`.
    """
    from orchestrator.cli.batch_view import BatchView
    from orchestrator.sdk import Tutti

    with Tutti() as tutti, BatchView() as view:
        note("reading the input, then starting Ray and loading the base")
        result = tutti.batch(
            input_path,
            output_path,
            alias,
            view.progress,
            prompt=prompt,
            columns=columns,
            mode=mode,
            calibrate=calibrate,
            decoding=decoding_of(**decoding),
            answers=answers,
            format=output_format,
            shard_rows=shard_rows,
            on_note=view.note,
            stop=view.stop,
        )
    _tell(result, as_json)


@command.command("resume")
@run_argument
@as_json_option
def resume(run_id: str, as_json: bool) -> None:
    """Go on with RUN, which was interrupted, killed or failed.

    The input must be what it was. What is done is checked and not done again; the output is the
    same, to the byte, as that of an undisturbed run. Of two that resume at once, the second is told
    who works on it.
    """
    from orchestrator.cli.batch_view import BatchView
    from orchestrator.sdk import Tutti

    with Tutti() as tutti, BatchView() as view:
        note("checking the input and what is done")
        result = tutti.resume_batch(run_id, view.progress, view.note, view.stop)
    _tell(result, as_json)


@command.command("list")
@click.option(
    "--state", "states", multiple=True, type=click.Choice([str(state) for state in BatchState])
)
@click.option("--owner", help="Runs of one person.")
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True)
@as_json_option
def list_(states: tuple[str, ...], owner: str | None, limit: int, as_json: bool) -> None:
    """List runs, the newest first."""
    from orchestrator.sdk import Tutti

    with Tutti() as tutti:
        found = tutti.batches([BatchState(state) for state in states] or None, owner, limit)
    if as_json:
        print_json([run_json(run) for run in found])
    elif found:
        print_table(COLUMNS, [_cells(run) for run in found])
    else:
        note("there is no batch run yet: start one with `tutti batch run`")


@command.command("show")
@newest_argument
@as_json_option
def show(run_id: str | None, as_json: bool) -> None:
    """Show RUN, or the newest: what it was started with, how far it is, its versions and shards."""
    from orchestrator.sdk import Tutti

    with Tutti() as tutti:
        facts = facts_of(tutti, run_id)
    if as_json:
        print_json(facts)
        return
    shown = ("id", "state", "input", "output", "manifest", "format", "owner", "error")
    fields = {name: str(facts[name]) for name in shown if facts[name] is not None}
    fields["rows"] = f"{facts['num_answered']} of {facts['num_rows']}, {facts['num_errors']} errors"
    fields["shards"] = f"{facts['num_shards_done']} of {facts['num_shards']} done"
    fields["worked on by"] = facts["holder"] or "nobody"
    print_fields(fields)
    counts = facts["counts"]
    if counts:
        names = ("rows", "errors", "tokens", "positions")
        rows = [
            [ref or "(no task)", *(str(c[name]) for name in names)] for ref, c in counts.items()
        ]
        print_table(("version", *names), rows)


@command.command("cancel")
@run_argument
@as_json_option
def cancel(run_id: str, as_json: bool) -> None:
    """End RUN for good; what it wrote stays."""
    from orchestrator.sdk import Tutti

    with Tutti() as tutti:
        ended = tutti.cancel_batch(run_id)
    if as_json:
        print_json(run_json(ended))
    else:
        note(f"batch run {short(ended.id)} is cancelled")


def run_json(found: BatchRun) -> dict[str, object]:
    """A run for scripts."""
    return vars(found) | {"can_resume": found.can_resume}


def facts_of(tutti: "Tutti", run_id: str | None) -> dict[str, Any]:
    """All that the ledger knows of a run: also where its output and its manifest lie."""
    from dataclasses import asdict

    from orchestrator.batch.resume import target_of
    from orchestrator.domain.batch_run import sum_counts

    found = tutti.batch_run(run_id)
    plan, shards = tutti.batch_plan(found.id), tutti.batch_shards(found.id)
    target = target_of(plan)
    return run_json(found) | {
        "input": found.source,
        "files": [
            {name: file[name] for name in ("url", "sha256", "num_bytes", "num_rows")}
            for file in plan.input["files"]
        ],
        "manifest": target.manifest,
        "parts_folder": target.parts_folder(found.id),
        "settings": dict(plan.settings),
        "pins": {ref: asdict(pin) for ref, pin in plan.pins.items()},
        "bases": list(plan.bases),
        "counts": {name: asdict(count) for name, count in sum_counts(shards).items()},
        "shards": [asdict(shard) for shard in shards],
    }


def _tell(result: "BatchResult", as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "run": result.id,
                "output": result.output,
                "manifest": result.manifest,
                "rows": result.num_rows,
                "errors": result.num_errors,
                "seconds": round(result.seconds, 3),
                "versions": {version.ref: version.digest for version in result.versions},
            }
        )
        return
    note(
        f"batch run {short(result.id)}: {result.num_rows} rows, "
        f"{result.num_rows - result.num_errors} answered, {result.num_errors} errors, "
        f"{len(result.versions)} prompt versions, {result.seconds:.1f} s -> {result.output}"
    )


def _cells(found: BatchRun) -> list[str]:
    from orchestrator.holder import place

    is_left = found.state == BatchState.RUNNING and found.holder is None
    return [
        short(found.id),
        "stopped" if is_left else str(found.state),
        f"{found.num_answered}/{found.num_rows}",
        str(found.num_errors),
        f"{found.num_shards_done}/{found.num_shards}",
        found.source,
        found.output,
        when(found.created_at),
        place(found.holder) if found.holder else "",
    ]
