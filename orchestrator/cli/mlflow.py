"""`tutti mlflow`: MLflow as a window on the registry, and what was changed there by hand."""

import sys
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli.output import as_json_option, note, print_json, print_table

if TYPE_CHECKING:
    from orchestrator.tracking.reconcile import Policy, SyncReport


@click.group("mlflow")
def command() -> None:
    """Bring MLflow and the registry together again."""


@command.command("sync")
@click.option("--report", "policy", flag_value="report", help="Only report changed aliases.")
@click.option("--adopt", "policy", flag_value="adopt", help="Promote what MLflow's aliases say.")
@click.option("--revert", "policy", flag_value="revert", help="Set MLflow's aliases back.")
@click.option("--task", help="Only what is of one task.")
@click.option("--dry-run", is_flag=True, help="Only show what differs.")
@as_json_option
def sync(policy: "Policy | None", task: str | None, dry_run: bool, as_json: bool) -> None:
    """Find where MLflow differs from the registry, and repair it.

    What MLflow lost of runs and model versions is made again. An alias that was changed by hand in
    MLflow is handled as TUTTI_MLFLOW_DRIFT says (report, if it is not set), or one of the options.
    Exits with 1 if a difference is left.
    """
    from orchestrator.sdk import Tutti

    with Tutti() as tutti:
        report = tutti.sync_mlflow(policy, task, dry_run)
    if as_json:
        print_json(_json(report))
    else:
        _print(report)
    if not report.is_settled:
        sys.exit(1)


def _print(report: "SyncReport") -> None:
    columns = ("what", "of", "registry", "MLflow", "done")
    rows = [
        [
            repair.drift.kind.replace("_", " "),
            repair.drift.subject,
            repair.drift.registry or "none",
            repair.drift.mlflow or "none",
            repair.done or f"nothing: {repair.error}" if repair.error or repair.done else "nothing",
        ]
        for repair in report.repairs
    ]
    if rows:
        print_table(columns, rows)
    elif not report.error:
        note("MLflow and the registry agree")
    if report.error:
        note(f"MLflow has not been told everything (it will, later): {report.error}")


def _json(report: "SyncReport") -> dict[str, Any]:
    return {
        "repairs": [
            {**vars(repair.drift), "done": repair.done or None, "error": repair.error or None}
            for repair in report.repairs
        ],
        "error": report.error,
        "is_settled": report.is_settled,
    }
