"""`tutti gangs`: the Ray Train runs that hold a base and train the jobs on it."""

import click

from orchestrator.cli.output import as_json_option, note, print_json, print_table, when
from orchestrator.domain.digest import short
from orchestrator.domain.gang_record import GangRecord
from orchestrator.holder import place

COLUMNS = ("gang", "base", "state", "workers", "jobs", "s/step", "tokens/s", "started", "holder")


@click.group("gangs")
def command() -> None:
    """See the gangs that train, and drain them."""


@command.command("list")
@click.option("--all", "include_ended", is_flag=True, help="Those that have ended, too.")
@as_json_option
def list_(include_ended: bool, as_json: bool) -> None:
    """List gangs, the newest first."""
    from orchestrator.sdk import Tutti

    with Tutti() as tutti:
        gangs = tutti.gangs(include_ended)
    if as_json:
        print_json(gangs)
    elif gangs:
        print_table(COLUMNS, [_row(gang) for gang in gangs])
    else:
        note("no gang is up: a controller starts one when jobs are queued")


@command.command("drain")
@click.argument("gang", metavar="GANG")
@as_json_option
def drain(gang: str, as_json: bool) -> None:
    """Ask GANG to end: its jobs go back to the queue, with checkpoints."""
    from orchestrator.sdk import Tutti

    with Tutti() as tutti:
        tutti.drain(gang)
    if as_json:
        print_json({"name": gang, "is_drain_asked": True})
    else:
        note(f"{gang} ends at its next step; its jobs go back to the queue")


def _row(gang: GangRecord) -> list[str]:
    return [
        gang.name,
        short(gang.base_fingerprint),
        _state(gang),
        str(gang.num_workers),
        str(gang.num_jobs),
        f"{gang.step_s:.2f}" if gang.step_s else "",
        f"{gang.tokens_per_s:.0f}" if gang.tokens_per_s else "",
        when(gang.started_at),
        place(gang.holder),
    ]


def _state(gang: GangRecord) -> str:
    if gang.ended_at is not None:
        return f"ended: {gang.error}" if gang.error else f"ended {when(gang.ended_at)}"
    state = gang.stage or "training"
    return f"{state}, drains" if gang.is_drain_asked else state
