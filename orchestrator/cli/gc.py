"""`tutti gc`: artifacts that nothing names, folders that nothing needs, and their end."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli.output import as_json_option, note, print_json, print_table
from orchestrator.cli.submit_options import DURATION

if TYPE_CHECKING:
    from orchestrator.artifacts.store_files import StoredFile
    from orchestrator.upkeep.batch_folders import LeftFolder
    from orchestrator.upkeep.gc import Collected

Stored = Sequence["StoredFile | LeftFolder"]


@click.command("gc")
@click.option("--delete", is_flag=True, help="Remove what is due; else it is only shown.")
@click.option(
    "--grace",
    type=DURATION,
    default="7d",
    show_default=True,
    help="How long an artifact must have been seen unnamed, or a folder left.",
)
@as_json_option
def command(delete: bool, grace: float, as_json: bool) -> None:
    """Find artifacts that nothing names: refused checkpoints, half writes of killed processes; and
    folders that nothing needs: the parts of cancelled batch runs, the output of `tutti evaluate`.

    Each call marks what it sees unnamed; with --delete, what was marked for the grace is removed.
    Whatever stands anywhere in the database stays, and so does what is stored again meanwhile. A
    folder goes when the grace is over since its runs ended (an hour at least for an evaluation's),
    and never while a run may be resumed. Safe beside running jobs.
    """
    from orchestrator.sdk import Tutti

    with Tutti() as tutti:
        found = tutti.gc(delete, grace)
    if as_json:
        print_json(_as_json(found))
        return
    _print(found, delete)


def _print(found: "Collected", delete: bool) -> None:
    folders = found.folders
    files, left = (found.removed, folders.removed) if delete else (found.due, folders.due)
    rows = [(file.name, str(file.num_bytes)) for file in files]
    rows += [(folder.place, str(folder.num_bytes)) for folder in left]
    print_table(("artifact or folder", "bytes"), rows)
    what = "removed" if delete else "due"
    note(
        f"{found.num_files} files, {found.num_named} named by the registry; {_sum(found.waiting)} "
        f"in their grace; {_sum(files)} {what}"
    )
    if left or folders.waiting:
        note(f"folders of batch runs: {_sum(folders.waiting)} in their grace; {_sum(left)} {what}")
    for text in folders.failed:
        note(f"not collected: {text}")
    if found.spared:
        note(f"{_sum(found.spared)} stored again meanwhile, and kept")
    if (found.due or folders.due) and not delete:
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
        "folders": {
            **{
                what: [{"place": each.place, "num_bytes": each.num_bytes} for each in folders]
                for what, folders in {
                    "waiting": found.folders.waiting,
                    "due": found.folders.due,
                    "removed": found.folders.removed,
                }.items()
            },
            "failed": list(found.folders.failed),
        },
    }
