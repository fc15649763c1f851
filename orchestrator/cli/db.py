"""`tutti db`: the database's schema, and its copies."""

import sys
from pathlib import Path

import click

from orchestrator.cli.output import as_json_option, note, print_json
from orchestrator.upkeep.finding import FOUND

_FOLDER = click.Path(path_type=Path)


@click.group("db")
def command() -> None:
    """Upgrade the database, show its schema, back it up and restore it."""


@command.command("upgrade")
@as_json_option
def upgrade(as_json: bool) -> None:
    """Create or upgrade the database's schema to this program's."""
    from orchestrator.registry import migrate
    from orchestrator.settings import read_settings

    revision = migrate.upgrade(read_settings().database_url)
    if as_json:
        print_json({"revision": revision})
    else:
        click.echo(revision)
        note("the database is at this program's schema")


@command.command("current")
@as_json_option
def current(as_json: bool) -> None:
    """Show the database's schema revision and the program's."""
    from orchestrator.registry import migrate
    from orchestrator.settings import read_settings

    found, head = migrate.current(read_settings().database_url), migrate.head()
    if as_json:
        print_json({"revision": found, "head": head, "is_current": found == head})
        return
    click.echo(found or "none")
    if found != head:
        note(f"this program's schema is {head}: run `tutti db upgrade`")


@command.command("backup")
@click.argument("folder", type=_FOLDER)
@click.option("--artifacts", is_flag=True, help="Also the artifacts that the database names.")
@as_json_option
def backup(folder: Path, artifacts: bool, as_json: bool) -> None:
    """Save the registry of this moment in a new folder; trainings may go on meanwhile.

    The same for SQLite and PostgreSQL, and it restores into either. Exit code 3: artifacts that the
    registry names could not be saved; the rest was.
    """
    from orchestrator.sdk import Tutti

    with Tutti() as tutti:
        saved = tutti.backup(folder, artifacts)
    if as_json:
        print_json({"folder": str(folder), **vars(saved)})
    else:
        click.echo(folder)
        kept = f" and {saved.num_artifacts} artifacts" if artifacts else "; no artifacts"
        note(f"{saved.num_rows} rows{kept}")
    for reference in saved.lost:
        note(f"lost: the {reference.role} of {reference.by}, {reference.digest}")
    if saved.lost:
        note("see `tutti fsck`")
        sys.exit(FOUND)


@command.command("restore")
@click.argument("folder", type=_FOLDER)
@as_json_option
def restore(folder: Path, as_json: bool) -> None:
    """Bring a backup back into an empty registry, the one that the settings name.

    Everything in it is verified before a row is written; then all rows come, or none.
    """
    from orchestrator.sdk import Tutti

    with Tutti() as tutti:
        restored = tutti.restore(folder)
    if as_json:
        print_json({"num_rows": restored.num_rows, "num_artifacts": restored.num_artifacts})
        return
    note(f"{restored.num_rows} rows and {restored.num_artifacts} artifacts restored")
    note("`tutti fsck` checks them against each other, and against MLflow")
