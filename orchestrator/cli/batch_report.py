"""`tutti batch report`: what came of a run, as a page, a table or JSON."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from orchestrator.cli.output import as_json_option, note, number, print_json, print_table
from orchestrator.domain.errors import InvalidInput

if TYPE_CHECKING:
    from orchestrator.batch_report.batch_report import BatchReport
    from orchestrator.batch_report.version_report import VersionReport

_COLUMNS = ("prompt", "rows", "errors", "accuracy", "95% interval", "ECE", "tokens", "ms/row")


@click.command("report")
@click.argument("run_id", metavar="[RUN]", required=False)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="Also write it as a page, whole in one .html file; replaces what is there.",
)
@as_json_option
def report(run_id: str | None, output: Path | None, as_json: bool) -> None:
    """Count the output of RUN, or of the newest: errors, accuracy where answers are known, speed.

    Of a run that has not ended, the rows of its finished shards. The page has confusion matrices
    and pictures of the scores; it needs nothing else to be shown.
    """
    from orchestrator.batch_report.report_json import report_json
    from orchestrator.sdk import Tutti

    if output is not None and output.suffix.lower() not in (".html", ".htm"):
        raise InvalidInput(f"{output}: a report is a page", "Name the file .html.")
    with Tutti() as tutti:
        found = tutti.batch_report(run_id)
    if output is not None:
        _write_page(output, found)
        note(f"written: {output}")
    if as_json:
        print_json(report_json(found))
    else:
        _print(found)


def _write_page(path: Path, found: "BatchReport") -> None:
    from encoders.files.durable_file import write_durably
    from orchestrator.batch_report.page import draw_page

    try:
        write_durably(path, [draw_page(found)])
    except OSError as error:
        raise InvalidInput(f"{path}: the page cannot be written: {error.strerror}") from error


def _print(found: "BatchReport") -> None:
    print_table(_COLUMNS, [_row(found, version) for version in found.versions])
    for version in found.versions:
        for reason in version.reasons:
            note(f"{version.name}: {reason.num_rows} rows, like row {reason.row}: {reason.example}")
    facts = found.facts
    if facts.num_shards is not None and len(facts.shards) < facts.num_shards:
        note(f"{len(facts.shards)} of {facts.num_shards} shards are finished")
    speed = f", {found.rows_per_s:.1f} rows/s" if found.rows_per_s is not None else ""
    note(f"{facts.state}: {found.num_rows} rows, {found.num_errors} errors{speed}")


def _row(found: "BatchReport", version: "VersionReport") -> list[str]:
    hits, scores = version.hits, version.calibration
    seconds = found.seconds_per_row(0.5, version.name)
    return [
        version.name,
        str(version.num_rows),
        str(version.num_errors),
        number(hits.value if hits else None, 3),
        f"{hits.interval[0]:.3f} to {hits.interval[1]:.3f}" if hits else "",
        number(scores.error if scores else None, 3),
        str(version.num_tokens or ""),
        number(None if seconds is None else 1000 * seconds, 3),
    ]
