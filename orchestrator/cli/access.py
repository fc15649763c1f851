"""`tutti access`: who may do what. PostgreSQL holds everybody to it; SQLite holds nobody."""

import click

from orchestrator.cli.output import as_json_option, note, print_json, print_table
from orchestrator.domain.access import ALL_TASKS, Access, Role

COLUMNS = ("principal", "role", "tasks")
_TASKS = "Tasks, by name; * stands for any characters."


@click.group("access")
def command() -> None:
    """Give and take roles: viewer, trainer, promoter, controller, admin; each may what those before
    it may, on the tasks whose names match."""


@command.command("add")
@click.argument("principal")
@click.option("--role", type=click.Choice([str(role) for role in Role]), required=True)
@click.option("--tasks", default=ALL_TASKS, show_default=True, help=_TASKS)
@as_json_option
def add(principal: str, role: str, tasks: str, as_json: bool) -> None:
    """Give PRINCIPAL a role on tasks. A new principal gets a login: its URL is printed, once.

    Needs an admin; for a new login, the owner of Tutti's tables, with CREATEROLE.
    """
    from orchestrator.sdk import Tutti

    with Tutti() as tutti:
        url = tutti.add_access(principal, Role(role), tasks)
    _print_url(url, principal, as_json)
    note(f"{principal} is {role} on {tasks}")


@command.command("rotate")
@click.argument("principal")
@as_json_option
def rotate(principal: str, as_json: bool) -> None:
    """Give PRINCIPAL a new token; the old one opens no connection any more."""
    from orchestrator.sdk import Tutti

    with Tutti() as tutti:
        url = tutti.rotate_access(principal)
    _print_url(url, principal, as_json)


@command.command("remove")
@click.argument("principal")
@click.option("--tasks", help=f"{_TASKS} All of its roles if not given.")
@as_json_option
def remove(principal: str, tasks: str | None, as_json: bool) -> None:
    """Take PRINCIPAL's role on tasks; with the last one, its login."""
    from orchestrator.sdk import Tutti

    with Tutti() as tutti:
        tutti.remove_access(principal, tasks)
    if as_json:
        print_json({"principal": principal, "tasks": tasks})
    note(f"removed {principal}'s roles" + (f" on {tasks}" if tasks else ""))


@command.command("list")
@as_json_option
def list_(as_json: bool) -> None:
    """List who has which role."""
    from orchestrator.sdk import Tutti

    with Tutti() as tutti:
        found, has_control = tutti.access(), tutti.standing().user is not None
    _print_accesses(found, as_json)
    _note_control(has_control)


@command.command("show")
@as_json_option
def show(as_json: bool) -> None:
    """Show as whom you act, and what you may."""
    from orchestrator.sdk import Tutti

    with Tutti() as tutti:
        standing, actor = tutti.standing(), tutti.parts.actor
    if as_json:
        print_json(
            {"actor": actor, "is_owner": standing.is_owner, "accesses": list(standing.accesses)}
        )
        return
    click.echo(actor)
    if standing.user is not None and standing.is_owner:
        note("the owner of the database: may do everything")
    elif standing.user is not None:
        _print_accesses(list(standing.accesses), as_json)
    _note_control(standing.user is not None)


def _print_accesses(found: list[Access], as_json: bool) -> None:
    if as_json:
        print_json(found)
    elif found:
        print_table(COLUMNS, [[each.principal, each.role, each.task_pattern] for each in found])
    else:
        note("nobody has a role")


def _print_url(url: str | None, principal: str, as_json: bool) -> None:
    if as_json:
        print_json({"principal": principal, "url": url})
    elif url is not None:
        click.echo(url)
    if url is not None:
        note("this is TUTTI_DATABASE_URL for them; it holds the token and is not shown again")


def _note_control(has_control: bool) -> None:
    from orchestrator.registry.access_book import NO_CONTROL

    if not has_control:
        note(NO_CONTROL)
