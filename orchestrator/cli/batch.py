"""`tutti batch`: files of mixed tasks through many prompts."""

import time
from pathlib import Path

import click

from orchestrator.cli.output import as_json_option, note, open_screen, print_json


@click.group("batch")
def command() -> None:
    """Run files of mixed tasks through many prompts."""


@command.command("run")
@click.option("--input", "input_path", required=True, type=click.Path(path_type=Path))
@click.option("--output", "output_path", required=True, type=click.Path(path_type=Path))
@click.option("--alias", default="production", show_default=True, help="For lines without one.")
@as_json_option
def run(input_path: Path, output_path: Path, alias: str, as_json: bool) -> None:
    """Answer a JSONL file of requests, a line each:

    {"task": "country-continent", "fields": {"country": "Kenya"}}

    with an optional "version" (a number or an alias) and "id" (echoed). The output has one line
    for each line of the input, in its order; a line that cannot be answered holds an "error".
    """
    from orchestrator.sdk import Tutti

    screen, shown = open_screen(), time.monotonic()

    def progress(rows: int, errors: int) -> None:
        nonlocal shown
        if time.monotonic() - shown > 1:
            shown = time.monotonic()
            click.echo(f"{rows} rows answered, {errors} of them errors", file=screen)

    note("starting Ray and loading the base")
    with Tutti() as tutti:
        result = tutti.batch(input_path, output_path, alias, progress)
    if as_json:
        print_json(
            {
                "output": str(result.output),
                "rows": result.num_rows,
                "errors": result.num_errors,
                "seconds": round(result.seconds, 3),
                "versions": {version.ref: version.digest for version in result.versions},
            }
        )
        return
    note(
        f"{result.num_rows} rows: {result.num_rows - result.num_errors} answered, "
        f"{result.num_errors} errors, {len(result.versions)} prompt versions, "
        f"{result.seconds:.1f} s -> {result.output}"
    )
