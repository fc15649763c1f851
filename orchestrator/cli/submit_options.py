"""How a job is to be run, as options of commands; durations and times as people write them."""

import re
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import click

from orchestrator.domain.job import JobOptions

_UNITS_S = {"d": 86_400, "h": 3600, "m": 60, "s": 1}
_DURATION = re.compile(r"(?=\d)(?:(\d{1,4})d)?(?:(\d{1,5})h)?(?:(\d{1,7})m)?(?:(\d{1,9})s)?")


class Duration(click.ParamType[float]):
    """90s, 30m, 2h, 1d or 1h30m, as seconds."""

    name = "duration"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        found = _DURATION.fullmatch(str(value))
        numbers = found.groups(default="0") if found else ()
        seconds = sum(
            int(number) * unit for number, unit in zip(numbers, _UNITS_S.values(), strict=False)
        )
        if not seconds:
            self.fail(f"{value!r} is not a duration: write 90s, 30m, 2h, 1d or 1h30m", param, ctx)
        return float(seconds)


class Moment(click.ParamType[datetime | timedelta]):
    """+10m from now (by the database's clock), or an ISO time with its zone."""

    name = "time"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> datetime | timedelta:
        text = str(value)
        if text.startswith("+"):
            return timedelta(seconds=DURATION.convert(text[1:], param, ctx))
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            self.fail(f"{text!r} is not a time: write +10m or {_EXAMPLE}", param, ctx)
        if moment.tzinfo is None:
            self.fail(f"{text!r} has no time zone: write {_EXAMPLE}, or ...+01:00", param, ctx)
        return moment


_EXAMPLE = "2026-01-31T18:30:00Z"
DURATION = Duration()
Command = Callable[..., Any]

_run_options = (
    click.option("--priority", default=0, show_default=True, help="Higher goes first."),
    click.option(
        "--max-attempts",
        default=3,
        show_default=True,
        type=click.IntRange(min=1),
        help="Attempts that may end by the machine's fault.",
    ),
    click.option(
        "--time-limit",
        type=DURATION,
        help="Of training: 90s, 30m, 2h. Then it fails; `tutti jobs retry --time-limit` goes on.",
    ),
)
_queue_options = (
    click.option("--not-before", type=Moment(), help=f"Wait until then: +10m, {_EXAMPLE}."),
    click.option("--after", multiple=True, metavar="JOB", help="Wait until JOB has succeeded."),
    click.option("--key", help="Names the job: the same key is the same job."),
)


def with_run_options(command: Command) -> Command:
    """--priority, --max-attempts, --time-limit; read them with `read_options`."""
    for option in reversed(_run_options):
        command = option(command)
    return command


def with_queue_options(command: Command) -> Command:
    """Those, and --not-before, --after, --key."""
    for option in reversed(_queue_options):
        command = option(command)
    return with_run_options(command)


def read_options(
    now: Callable[[], datetime],
    priority: int,
    max_attempts: int,
    time_limit: float | None,
    not_before: datetime | timedelta | None = None,
    after: tuple[str, ...] = (),
    key: str | None = None,
) -> JobOptions:
    """The options as a job has them; `now` is the database's clock."""
    if isinstance(not_before, timedelta):
        not_before = now() + not_before
    return JobOptions(priority, max_attempts, time_limit, not_before, after, key)
