"""How commands print: tables for people, JSON for scripts, notes on stderr."""

import dataclasses
import json
import os
import sys
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, TextIO

import click

if TYPE_CHECKING:
    from rich.table import Table

as_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")


def print_json(value: Any) -> None:
    """Print a value as JSON on stdout."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False, default=_plain))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> None:
    """Print a table on stdout: drawn by rich on a terminal, aligned plain text elsewhere."""
    if sys.stdout.isatty():
        from rich.console import Console

        Console().print(draw_table(columns, rows, title))
        return
    if title:
        click.echo(title)
    widths = [max(len(str(cell)) for cell in column) for column in zip(columns, *rows, strict=True)]
    for row in (columns, *rows):
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo("  ".join(cells).rstrip())


def draw_table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> "Table":
    """The table that a terminal shows."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title or None, header_style="bold", title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def print_fields(fields: dict[str, str]) -> None:
    """Print names and values, a line each, aligned."""
    width = max(map(len, fields))
    for name, value in fields.items():
        click.echo(f"{name.ljust(width)}  {value}")


def note(message: str) -> None:
    """Say something that is not data."""
    click.echo(message, err=True)


def open_screen() -> TextIO:
    """A copy of stderr that still reaches the user when stderr itself is sent to a log."""
    return os.fdopen(os.dup(2), "w", buffering=1)


def number(value: float | None, digits: int = 2) -> str:
    """A figure for a table; empty when there is none."""
    return "" if value is None else f"{value:.{digits}f}"


def when(value: datetime | None) -> str:
    """A time for a table, in the reader's zone."""
    return "" if value is None else value.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, datetime):
        return value.isoformat()
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    return str(value)
