"""Options of `tutti batch run`: decoding, and fields in columns of other names."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

from orchestrator.domain.batch import Decoding

Command = TypeVar("Command", bound=Callable[..., Any])

_DECODING = (
    click.option("--max-new-tokens", type=int, help="Default: the version's own longest answer."),
    click.option("--do-sample", is_flag=True, help="Sample, in place of the likeliest token."),
    click.option("--temperature", type=float, default=1.0, show_default=True),
    click.option("--top-k", type=int, default=0, show_default=True, help="0: all tokens."),
    click.option("--top-p", type=float, default=1.0, show_default=True),
    click.option("--num-beams", type=int, default=1, show_default=True),
    click.option("--stop", "stop_strings", multiple=True, help="An answer ends before this text."),
    click.option("--seed", type=int, default=0, show_default=True),
)


def with_decoding_options(command: Command) -> Command:
    """The command with an option for each part of Decoding."""
    for option in reversed(_DECODING):
        command = option(command)
    return command


def decoding_of(stop_strings: tuple[str, ...], **values: Any) -> Decoding:
    """What those options say."""
    return Decoding(stop_strings=tuple(stop_strings), **values)


def _read_map(
    context: click.Context, parameter: click.Parameter, given: tuple[str, ...]
) -> dict[str, str]:
    columns: dict[str, str] = {}
    for each in given:
        name, equals, column = each.partition("=")
        if not (name and equals and column):
            raise click.BadParameter(f"{each!r}: write FIELD=COLUMN, for example country=Land")
        if name in columns:
            raise click.BadParameter(f"the field {name!r} is given twice")
        columns[name] = column
    return columns


map_option = click.option(
    "--map",
    "columns",
    multiple=True,
    metavar="FIELD=COLUMN",
    callback=_read_map,
    help="A field (or task, version, id) stands in a column of another name.",
)
