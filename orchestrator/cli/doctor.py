"""`tutti doctor`: is this installation well?"""

import sys

import click

from orchestrator.cli.output import as_json_option, print_json


@click.command("doctor")
@as_json_option
def command(as_json: bool) -> None:
    """Check versions, devices, data directory, database, MLflow, Ray and disk.

    Each part is ok, or comes with what to do. Exit code 1 if any is not ok.
    """
    from orchestrator.health import check_all

    checks = check_all()
    if as_json:
        print_json(checks)
    else:
        width = max(len(check.name) for check in checks)
        for check in checks:
            mark = "ok  " if check.is_ok else "FAIL"
            click.echo(f"{mark}  {check.name.ljust(width)}  {check.found}")
            if check.remedy:
                click.echo(f"      {' ' * width}  -> {check.remedy}")
    if not all(check.is_ok for check in checks):
        sys.exit(1)
