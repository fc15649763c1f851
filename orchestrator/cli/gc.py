"""`tutti gc`: artifacts that nothing names, and their end."""

from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli.output import as_json_option, note, print_json, print_table
from orchestrator.cli.submit_options import DURATION

if TYPE_CHECKING:
    from orchestrator.artifacts.store_files import StoredFile
    from orchestrator.upkeep.gc import Collected

Stored = tuple["StoredFile", ...]


@click.command("gc")
@click.option("--delete", is_flag=True, help="Remove what is due; else it is only shown.")
@click.option(
    "--grace",
    type=DURATION,
    default="7d",
    show_default=True,
    help="How long an artifact must have been seen unnamed.",
)
@as_json_option
def command(delete: bool, grace: float, as_json: bool) -> None:
    """Find artifacts that nothing names: refused checkpoints, half writes of killed processes.

    Each call marks what it sees unnamed; with --delete, what was marked for the grace is removed.
    Whatever stands anywhere in the database stays, and so does what is stored again meanwhile. Safe
    beside running jobs.
    """
    from orchestrator.sdk import Tutti

    with Tutti() as tutti:
        found = tutti.gc(delete, grace)
    if as_json:
        print_json(_as_json(found))
        return
    shown = found.removed if delete else found.due
    print_table(("artifact", "bytes"), [(file.name, str(file.num_bytes)) for file in shown])
    note(
        f"{found.num_files} files, {found.num_named} named by the registry; {_sum(found.waiting)} "
        f"in their grace; {_sum(shown)} {'removed' if delete else 'due'}"
    )
    if found.spared:
        note(f"{_sum(found.spared)} stored again meanwhile, and kept")
    if found.due and not delete:
        note("nothing was removed: add --delete")


def _sum(files: Stored) -> str:
    return f"{len(files)} ({sum(file.num_bytes for file in files):,} bytes)"


def _as_json(found: "Collected") -> dict[str, Any]:
    return {
        "num_files": found.num_files,
        "num_named": found.num_named,
        **{
            what: [{"name": file.name, "num_bytes": file.num_bytes} for file in files]
            for what, files in {
                "waiting": found.waiting,
                "due": found.due,
                "removed": found.removed,
                "spared": found.spared,
            }.items()
        },
    }
