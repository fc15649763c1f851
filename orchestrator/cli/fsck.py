"""`tutti fsck`: is what the registry says true?"""

import sys
from typing import Any

import click

from orchestrator.cli.output import as_json_option, note, print_json
from orchestrator.upkeep.finding import FOUND, Finding


@click.command("fsck")
@click.option("--repair", is_flag=True, help="Mend what can be mended without inventing anything.")
@click.option("--quick", is_flag=True, help="Go by names and sizes; read no artifact's bytes.")
@click.option(
    "--from", "copies", metavar="FOLDER", help="A copy of the artifact store, to put back from."
)
@as_json_option
def command(repair: bool, quick: bool, copies: str | None, as_json: bool) -> None:
    """Check the registry against its artifacts, its bases, itself and MLflow.

    Each finding has its kind, its place and its remedy. Exit code 0: all is well, or was mended;
    3: something is not.
    """
    from orchestrator.sdk import Tutti

    with Tutti() as tutti:
        report = tutti.fsck(repair, quick, copies)
    if as_json:
        findings = [_finding_json(finding) for finding in report.findings]
        print_json(
            {
                "is_clean": report.is_clean,
                "findings": findings,
                "not_checked": list(report.not_checked),
            }
        )
    else:
        for finding in report.findings:
            _print(finding)
    for reason in report.not_checked:
        note(f"not checked: {reason}")
    open_ = sum(not finding.is_mended for finding in report.findings)
    note(f"{len(report.findings)} findings, {open_} to do" if report.findings else "all is well")
    if not report.is_clean:
        sys.exit(FOUND)


def _print(finding: Finding) -> None:
    click.echo(f"{finding.kind}  {finding.where}")
    click.echo(f"    {finding.what}")
    if finding.done:
        click.echo(f"    {'mended' if finding.is_mended else 'not mended'}: {finding.done}")
    if not finding.is_mended:
        click.echo(f"    -> {finding.remedy}")


def _finding_json(finding: Finding) -> dict[str, Any]:
    return {
        "kind": finding.kind,
        "where": finding.where,
        "what": finding.what,
        "remedy": finding.remedy,
        "done": finding.done,
        "is_mended": finding.is_mended,
    }
