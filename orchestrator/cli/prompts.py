"""`tutti prompts`: versions, and their evidence. What moves aliases, speaks for versions or asks
about several of them is in files of its own, added below."""

import click

from orchestrator.cli.output import as_json_option, note, print_fields, print_json, print_table
from orchestrator.cli.promotions import at, history, promote, rollback, unset
from orchestrator.cli.prompt_questions import compare, diff, lineage, stale
from orchestrator.cli.prompt_report import (
    change_row,
    print_evidence,
    version_fields,
    version_json,
    version_row,
)
from orchestrator.cli.version_archive import export, import_
from orchestrator.cli.version_notes import approve, describe, tag

_NONE_YET = "no prompt versions: train some with `tutti train SPEC...`"


@click.group("prompts")
def command() -> None:
    """List, show, promote and roll back prompt versions."""


for _command in (
    *(promote, rollback, unset, history, at, approve, tag, describe),
    *(diff, compare, lineage, stale),
    *(export, import_),
):
    command.add_command(_command)


@command.command("list")
@click.option("--task", help="Versions of one task.")
@click.option("--alias", help="Only the versions an alias points at.")
@click.option("--where", metavar="FILTER", help="As in 'metrics.accuracy > 0.8 and age < 30d'.")
@click.option("--evidence", is_flag=True, help="Beside the manual prompt, on the held-out rows.")
@click.option("--limit", default=100, show_default=True, type=click.IntRange(1, 100_000))
@click.option("--before", metavar="TASK@VERSION", help="The page after the one that ended there.")
@as_json_option
def list_(
    task: str | None,
    alias: str | None,
    where: str | None,
    evidence: bool,
    limit: int,
    before: str | None,
    as_json: bool,
) -> None:
    """List prompt versions, the newest first."""
    from orchestrator.sdk import Tutti

    with Tutti() as tutti:
        versions = tutti.prompts(task, alias, limit, where, before)
    if as_json:
        print_json([version_json(version) for version in versions])
    elif not versions:
        note("no such prompt versions" if where or before else _NONE_YET)
    elif evidence:
        print_evidence(versions)
    else:
        columns = ("prompt", "aliases", "metric", "value", "digest", "created")
        print_table(columns, [version_row(version) for version in versions])
    if len(versions) == limit:
        note(f"there may be more: add `--before {versions[-1].ref}`")


@command.command("show")
@click.argument("ref", metavar="TASK[@VERSION|@ALIAS]")
@as_json_option
def show(ref: str, as_json: bool) -> None:
    """Show one version: metrics, config, lineage, approvals, and what was said of it."""
    from orchestrator.sdk import Tutti

    with Tutti() as tutti:
        version = tutti.prompt(ref)
        approvals = tutti.approvals(version.ref)
        changes = tutti.description_changes(version.ref)
    if as_json:
        print_json({**version_json(version), "approvals": approvals, "changes": changes})
        return
    print_fields(version_fields(version, approvals))
    if changes:
        click.echo()
        columns = ("description or tag", "old", "new", "by", "at")
        print_table(columns, [change_row(change) for change in changes])
