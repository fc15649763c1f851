"""`tutti evaluate`: versions on the same rows, by batch runs, with a verdict."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from orchestrator.cli.batch_options import decoding_of, map_option, with_decoding_options
from orchestrator.cli.output import as_json_option, note, number, print_json, print_table
from orchestrator.domain.batch import BatchMode
from orchestrator.domain.digest import short

if TYPE_CHECKING:
    from orchestrator.questions.evaluation import Evaluated, Evaluation

_MODES = [str(mode) for mode in BatchMode if mode is not BatchMode.EMBED]
_COLUMNS = ("prompt", "metric", "value", "95% interval", "right", "rows", "errors", "run")


@click.command("evaluate")
@click.argument("refs", metavar="TASK[@VERSION|@ALIAS]...", nargs=-1, required=True)
@click.option("--data", required=True, help="Rows, as `tutti batch run --input` takes them.")
@map_option
@click.option("--mode", type=click.Choice(_MODES), default=_MODES[0], show_default=True)
@click.option("--answers", metavar="FIELD", help="The answers that --mode score scores.")
@click.option("--calibrate", is_flag=True, help="Contextual calibration of candidates.")
@click.option(
    "--against",
    type=click.Choice(["manual"]),
    help="Hold them against their spec's evaluation.manual_prompt, on the same rows.",
)
@with_decoding_options
@click.option("--output", help="A new folder (or URL) that keeps the runs' output.")
@as_json_option
def command(
    refs: tuple[str, ...],
    data: str,
    columns: dict[str, str],
    mode: str,
    answers: str | None,
    calibrate: bool,
    against: Literal["manual"] | None,
    output: str | None,
    as_json: bool,
    **decoding: Any,
) -> None:
    """Answer the same rows with versions, each in a batch run, and say which is better, if any is.

    Where the rows name tasks, a version answers its own task's; the first version of a task is what
    its others are held against, or with --against manual the manual prompt of their spec. A row is
    right if the answer is the row's own. Intervals are of 95%: Wilson's for each, Newcombe's for
    the difference; p is McNemar's, exact. `tutti batch report RUN` has more of each run.
    """
    from orchestrator.batch.run import Watch
    from orchestrator.cli.batch_view import BatchView
    from orchestrator.sdk import Tutti

    with Tutti() as tutti, BatchView() as view:
        note("reading the data, then starting Ray and loading the base")
        found = tutti.evaluate(
            refs,
            data,
            mode=mode,
            columns=columns,
            calibrate=calibrate,
            decoding=decoding_of(**decoding),
            answers=answers,
            against=against,
            output=Path(output) if output and "://" not in output else output,
            watch=Watch(view.progress, view.note, view.stop),
        )
    if as_json:
        print_json(evaluation_json(found))
    else:
        print_table(_COLUMNS, [_row(each) for each in found.versions])
        for comparison in found.comparisons:
            click.echo(comparison.verdict)
    for text in found.notes:
        note(text)


def evaluation_json(found: "Evaluation") -> dict[str, Any]:
    """An evaluation for scripts; what is not known is null."""
    from orchestrator.batch_report.report_json import share_json
    from orchestrator.cli.prompt_questions import comparison_json

    return {
        "data": found.data,
        "data_digest": found.data_digest,
        "versions": [
            {
                "ref": each.ref,
                "metric": each.metric,
                "share": share_json(each.hits),
                "num_rows": each.report.num_rows,
                "num_errors": each.report.num_errors,
                "mean_log_likelihood": each.report.mean_log_likelihood,
                "calibration_error": each.report.calibration and each.report.calibration.error,
                "run": each.run,
                "seconds": round(each.seconds, 3),
            }
            for each in found.versions
        ],
        "comparisons": [comparison_json(each) for each in found.comparisons],
        "notes": list(found.notes),
    }


def _row(each: "Evaluated") -> list[str]:
    hits = each.hits
    return [
        each.ref,
        each.metric,
        number(hits.value if hits else None, 3),
        f"{hits.interval[0]:.3f} to {hits.interval[1]:.3f}" if hits else "",
        f"{hits.num_hits} of {hits.num_rows}" if hits else "",
        str(each.report.num_rows),
        str(each.report.num_errors),
        short(each.run),
    ]
