"""`tutti prompts approve | tag | describe`: what people say of versions, each with its history."""

import click

from orchestrator.cli.output import as_json_option, print_json
from orchestrator.cli.prompt_report import version_json
from orchestrator.domain.errors import InvalidInput
from orchestrator.domain.prompt_version import PromptVersion

ref_argument = click.argument("ref", metavar="TASK@VERSION")


@click.command("approve")
@ref_argument
@click.option("--note", default="", help="Why; kept with the approval.")
@click.option("--withdraw", is_flag=True, help="Take your approval back.")
@as_json_option
def approve(ref: str, note: str, withdraw: bool, as_json: bool) -> None:
    """Approve a version that somebody else trained, for gates such as 'approvals >= 2'."""
    from orchestrator.sdk import Tutti

    with Tutti() as tutti:
        version = tutti.prompt(ref)
        act = tutti.withdraw_approval if withdraw else tutti.approve
        approvals = act(version.ref, note)
    if as_json:
        print_json(approvals)
    else:
        names = ", ".join(each.actor for each in approvals) or "nobody"
        click.echo(f"{version.ref} is approved by {names}")


@click.command("tag")
@ref_argument
@click.argument("changes", metavar="KEY=VALUE|KEY-...", nargs=-1, required=True)
@as_json_option
def tag(ref: str, changes: tuple[str, ...], as_json: bool) -> None:
    """Set a version's tags (KEY=VALUE), or remove them (KEY-)."""
    from orchestrator.sdk import Tutti

    tags = _tags(changes)
    with Tutti() as tutti:
        version = tutti.tag(ref, tags)
    _print(version, as_json)


@click.command("describe")
@ref_argument
@click.argument("text")
@as_json_option
def describe(ref: str, text: str, as_json: bool) -> None:
    """Say in words what a version is; an empty text takes that away."""
    from orchestrator.sdk import Tutti

    with Tutti() as tutti:
        version = tutti.describe(ref, text)
    _print(version, as_json)


def _tags(changes: tuple[str, ...]) -> dict[str, str | None]:
    """The changes by key; None removes."""
    tags: dict[str, str | None] = {}
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals and not key.endswith("-"):
            raise InvalidInput(
                f"{change!r} changes no tag", "Write KEY=VALUE to set a tag, KEY- to remove it."
            )
        key = key if equals else key.removesuffix("-")
        if key in tags:
            raise InvalidInput(f"the tag {key!r} is given twice", "Give each tag once.")
        tags[key] = value if equals else None
    return tags


def _print(version: PromptVersion, as_json: bool) -> None:
    if as_json:
        print_json(version_json(version))
        return
    click.echo(f"{version.ref}: {version.description or 'no description'}")
    for key, value in version.tags.items():
        click.echo(f"  {key}={value}")
