"""`tutti db`: the database's schema."""

import click

from orchestrator.cli.output import as_json_option, note, print_json


@click.group("db")
def command() -> None:
    """Upgrade the database, or show its schema."""


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
