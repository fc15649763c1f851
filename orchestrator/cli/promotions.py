"""`tutti prompts promote | rollback | unset | history | at`: where aliases point, and pointed."""

from datetime import datetime
from typing import TYPE_CHECKING

import click

from orchestrator.cli.output import as_json_option, note, print_json, print_table, when
from orchestrator.domain.errors import InvalidInput
from orchestrator.domain.prompt_version import Promotion

if TYPE_CHECKING:
    from orchestrator.sdk import Tutti

if_current_option = click.option(
    "--if-current",
    metavar="VERSION",
    type=click.IntRange(0),
    help="Move the alias only from this version (0: only if it is no alias).",
)
reason_option = click.option("--reason", default="", help="Why; kept in the history.")


@click.command("promote")
@click.argument("ref", metavar="TASK@VERSION")
@click.option("--to", "alias", default="production", show_default=True, help="The alias to move.")
@if_current_option
@click.option("--when", help="A gate, in place of the spec's: 'accuracy > incumbent.accuracy'.")
@reason_option
@click.option("--force", is_flag=True, help="Move the alias even if the gate does not hold.")
@as_json_option
def promote(
    ref: str,
    alias: str,
    if_current: int | None,
    when: str | None,
    reason: str,
    force: bool,
    as_json: bool,
) -> None:
    """Point an alias at a version, if its gate holds; in SQL at once, in MLflow right after.

    An alias that points there already stays: repeating the command is safe.
    """
    from orchestrator.sdk import Tutti

    with Tutti() as tutti:
        moved = tutti.promote(ref, alias, when, reason, force, if_current)
        _tell_mlflow(tutti)
    _print_move(moved, as_json)


@click.command("rollback")
@click.argument("task")
@click.option("--alias", default="production", show_default=True, help="The alias to move back.")
@if_current_option
@reason_option
@as_json_option
def rollback(task: str, alias: str, if_current: int | None, reason: str, as_json: bool) -> None:
    """Point an alias at the version it had before its last promotion.

    It is a move of its own, in the history, behind no gate. The next rollback goes one promotion
    further back: after 1, 2, 3 two of them give 2, then 1. A script gives --if-current, so that
    repeating the command does not go further.
    """
    from orchestrator.sdk import Tutti

    with Tutti() as tutti:
        moved = tutti.rollback(task, alias, reason, if_current)
        _tell_mlflow(tutti)
    _print_move(moved, as_json)


@click.command("unset")
@click.argument("task")
@click.option("--alias", required=True, help="The alias to take away.")
@if_current_option
@reason_option
@as_json_option
def unset(task: str, alias: str, if_current: int | None, reason: str, as_json: bool) -> None:
    """Take an alias away: then it points at nothing, here and in MLflow.

    It is a move of its own, in the history, behind no gate: a rollback takes it back, and a
    promotion makes the alias again. Repeating the command is safe.
    """
    from orchestrator.sdk import Tutti

    with Tutti() as tutti:
        moved = tutti.unset(task, alias, reason, if_current)
        _tell_mlflow(tutti)
    _print_move(moved, as_json)


@click.command("history")
@click.argument("task")
@click.option("--alias", help="The moves of one alias.")
@click.option("--limit", default=100, show_default=True, type=click.IntRange(1, 100_000))
@as_json_option
def history(task: str, alias: str | None, limit: int, as_json: bool) -> None:
    """List the moves of a task's aliases, newest first: who, when, why, behind which gate."""
    from orchestrator.sdk import Tutti

    with Tutti() as tutti:
        moves = tutti.history(task, alias, limit)
        if not moves:  # says what there is, if that is why
            tutti.prompt(task if alias is None else f"{task}@{alias}")
    if as_json:
        print_json(moves)
    elif moves:
        columns = ("alias", "generation", "from", "to", "by", "at", "how", "reason")
        print_table(columns, [_row(move) for move in moves])
    else:
        note(f"no alias of {task} has ever moved: see `tutti prompts promote --help`")
    if len(moves) == limit:
        note("there may be more: see --limit")


@click.command("at")
@click.argument("moment", metavar="TIME")
@click.argument("tasks", metavar="[TASK]...", nargs=-1)
@as_json_option
def at(moment: str, tasks: tuple[str, ...], as_json: bool) -> None:
    """Show where aliases pointed at TIME: 2026-01-31T12:00:00Z, or with +01:00.

    "none": the alias had been taken away.
    """
    from orchestrator.sdk import Tutti

    with Tutti() as tutti:
        moves = tutti.at(_moment(moment), tasks)
    if as_json:
        print_json(moves)
    elif moves:
        print_table(("prompt", "version", "since", "by"), [_standing_row(move) for move in moves])
    else:
        note(f"no alias pointed anywhere at {moment}")


def _moment(text: str) -> datetime:
    """A time with its zone: an audit must not depend on where it is read."""
    try:
        moment = datetime.fromisoformat(text)
        moment.astimezone()
    except (ValueError, OverflowError) as error:
        raise InvalidInput(f"{text!r} is not a time: {error}", _TIMES) from error
    if moment.tzinfo is None:
        raise InvalidInput(f"{text!r} has no time zone", _TIMES)
    return moment


_TIMES = "Write 2026-01-31T12:00:00Z, or the local time with its offset: 2026-01-31T13:00:00+01:00."


def _tell_mlflow(tutti: "Tutti") -> None:
    delivery = tutti.deliver()
    if delivery.error:
        note(f"MLflow has not heard yet (it will, later): {delivery.error}")


def _print_move(move: Promotion, as_json: bool) -> None:
    if as_json:
        print_json(move)
        return
    before, after = (
        f"{move.task}@{number}" if number else "none"
        for number in (move.from_version, move.to_version)
    )
    click.echo(f"{move.task}@{move.alias}: {before} -> {after}")
    note(f"move {move.generation}, by {move.actor} at {when(move.promoted_at)}")
    if move.overrode:
        note(f"forced, although {move.overrode}")


def _row(move: Promotion) -> list[str]:
    return [
        move.alias,
        str(move.generation),
        str(move.from_version or "none"),
        str(move.to_version or "none"),
        move.actor,
        when(move.promoted_at),
        _how(move),
        move.reason,
    ]


def _how(move: Promotion) -> str:
    if move.to_version is None:
        return "taken away"
    if move.restores is not None:
        return "rollback"
    if move.overrode is not None:
        return f"forced although {move.overrode}"
    return f"gate: {move.gate}" if move.gate else ""


def _standing_row(move: Promotion) -> list[str]:
    place = f"{move.task}@{move.alias}"
    return [place, str(move.to_version or "none"), when(move.promoted_at), move.actor]
