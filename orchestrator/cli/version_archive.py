"""`tutti prompts export` and `import`: versions as one file."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli.output import as_json_option, note, print_json

if TYPE_CHECKING:
    from orchestrator.domain.prompt_version import PromptVersion

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command("export")
@click.argument("refs", metavar="TASK[@VERSION|@ALIAS]...", nargs=-1, required=True)
@click.option("-o", "--output", required=True, type=_FILE, help="The archive to write.")
@as_json_option
def export(refs: tuple[str, ...], output: Path, as_json: bool) -> None:
    """Write versions as one archive file: weights, config, metrics and lineage.

    The base and the data are not in it. Equal versions give equal bytes.
    """
    from orchestrator.sdk import Tutti

    with Tutti() as tutti:
        versions = tutti.export_prompts(refs, output)
    if as_json:
        print_json({"file": str(output), "prompts": [_as_json(version) for version in versions]})
        return
    for version in versions:
        click.echo(version.ref)
    note(f"{len(versions)} versions written to {output}")


@click.command("import")
@click.argument("file", type=_FILE)
@as_json_option
def import_(file: Path, as_json: bool) -> None:
    """Register the versions of an archive file, all of them or none.

    Nothing in the file is believed: digests, sizes, names and forms are checked before anything is
    stored. A version whose content is there already keeps its number. Aliases do not move.
    """
    from orchestrator.sdk import Tutti

    with Tutti() as tutti:
        imported = tutti.import_prompts(file)
        delivery = tutti.deliver()
        known = {base.fingerprint for base in tutti.bases()}
    if delivery.error:
        note(f"MLflow has not heard yet (it will, later): {delivery.error}")
    for version, _ in imported:
        if version.lineage.base_fingerprint not in known:
            base = f"{version.lineage.base} ({version.lineage.base_fingerprint})"
            note(f"{version.ref} needs the base {base}, which is not here: `tutti base add`")
    if as_json:
        print_json([{**_as_json(version), "is_new": is_new} for version, is_new in imported])
        return
    for version, is_new in imported:
        click.echo(f"{version.ref}  {'new' if is_new else 'was there already'}")


def _as_json(version: "PromptVersion") -> dict[str, Any]:
    return {
        "ref": version.ref,
        "task": version.task,
        "version": version.number,
        "digest": version.digest,
    }
