"""`tutti prompts diff, compare, lineage, stale`: questions about versions that are there."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from orchestrator.cli.output import as_json_option, note, number, print_json, print_table
from orchestrator.domain.digest import short

if TYPE_CHECKING:
    from orchestrator.domain.paired_hits import Share
    from orchestrator.questions.prompt_compare import Comparison
    from orchestrator.questions.prompt_diff import Change, TokenChange
    from orchestrator.questions.prompt_lineage import PromptLineage
    from orchestrator.questions.stale_prompts import StalePrompt

_REF = "TASK[@VERSION|@ALIAS]"
MAX_CELL = 60


@click.command("diff")
@click.argument("a", metavar=_REF)
@click.argument("b", metavar=_REF)
@as_json_option
def diff(a: str, b: str, as_json: bool) -> None:
    """Show how version B differs from version A: config, metrics, lineage and virtual tokens.

    Beside each virtual token stand the words nearest to it, where the base is on this machine.
    """
    from orchestrator.sdk import Tutti

    with Tutti() as tutti:
        found = tutti.diff(a, b)
    if as_json:
        print_json(found)
        return
    for title in ("config", "metrics", "lineage"):
        changes = getattr(found, title)
        if changes:
            print_table((title, found.a, found.b), [_change(change) for change in changes])
            click.echo()
    columns = ("virtual token", "cosine", f"nearest, {found.a}", f"nearest, {found.b}")
    print_table(columns, [_token(token) for token in found.tokens])
    for text in found.notes:
        note(text)


@click.command("compare")
@click.argument("a", metavar=_REF)
@click.argument("b", metavar=_REF)
@click.option("--data", required=True, type=click.Path(path_type=Path), help="Rows, as JSONL.")
@as_json_option
def compare(a: str, b: str, data: Path, as_json: bool) -> None:
    """Answer the same rows with two versions and say which is better, if either is.

    Intervals are of 95%: Wilson's for each, Newcombe's for the difference; p is McNemar's, exact.
    """
    from orchestrator.sdk import Tutti

    with Tutti() as tutti:
        found = tutti.compare(a, b, data)
    if as_json:
        print_json(comparison_json(found))
    else:
        hits = found.hits
        sides = zip((found.a, found.b), found.metrics, (hits.a, hits.b), strict=True)
        rows = [[ref, metric, *_share(share)] for ref, metric, share in sides]
        print_table(("prompt", "metric", "value", "95% interval", "right", "rows"), rows)
        click.echo(found.verdict)
    for text in found.notes:
        note(text)


@click.command("lineage")
@click.argument("ref", metavar=_REF)
@click.option("--picture", type=click.Path(path_type=Path), help="Also draw it: a .svg or .png.")
@as_json_option
def lineage(ref: str, picture: Path | None, as_json: bool) -> None:
    """Show how a version was made: base, data, spec, job, MLflow run, promotions, parents."""
    from orchestrator.questions.prompt_lineage import as_text, as_tree
    from orchestrator.sdk import Tutti

    with Tutti() as tutti:
        found = tutti.lineage(ref)
    tree = as_tree(found)
    if picture is not None:
        from orchestrator.questions.lineage_picture import draw_lineage, write_picture

        write_picture(picture, draw_lineage(tree, picture))
        note(f"drawn: {picture}")
    if as_json:
        print_json(_lineage_json(found))
    else:
        click.echo(as_text(tree))


@click.command("stale")
@click.option("--limit", default=100, show_default=True, type=click.IntRange(1, 100_000))
@click.option(
    "--write",
    "folder",
    metavar="FOLDER",
    type=click.Path(path_type=Path),
    help="Write the specs and data that train them again; never overwrites.",
)
@as_json_option
def stale(limit: int, folder: Path | None, as_json: bool) -> None:
    """List prompts whose base has a newer fingerprint, with what it takes to train them again.

    A task is listed by its newest version: one that was retrained on the new base is not stale.
    """
    from orchestrator.sdk import Tutti

    with Tutti() as tutti:
        found = tutti.stale(limit)
        specs = tutti.write_retraining(found, folder) if folder else []
    if as_json:
        print_json({"stale": [_stale_json(each) for each in found], "specs": list(map(str, specs))})
    elif found:
        columns = ("prompt", "aliases", "base", "trained on", "now", "retraining")
        print_table(columns, [_stale_row(each) for each in found])
    _say_next(found, specs, folder, limit)


def _say_next(
    found: "list[StalePrompt]", specs: list[Path], folder: Path | None, limit: int
) -> None:
    if not found:
        note("no prompt is stale: every base's name means what the prompts were trained on")
    elif specs:
        note(f"train them again: tutti submit {folder}/*.yaml")
    elif folder is None and any(each.submission for each in found):
        note("to train them again: `tutti prompts stale --write FOLDER`")
    if len(found) == limit:
        note(f"there may be more: raise --limit above {limit}")


def _change(change: "Change") -> list[str]:
    return [change.name, _cell(change.a), _cell(change.b)]


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    text = "" if value is None else str(value)
    return text if len(text) <= MAX_CELL else f"{text[: MAX_CELL - 3]}..."


def _token(token: "TokenChange") -> list[str]:
    nearest = (" ".join(map(repr, side)) for side in (token.nearest_a, token.nearest_b))
    return [str(token.index), number(token.cosine, 3), *nearest]


def _share(share: "Share") -> list[str]:
    low, high = share.interval
    interval = f"{low:.3f} to {high:.3f}"
    return [f"{share.value:.3f}", interval, str(share.num_hits), str(share.num_rows)]


def comparison_json(found: "Comparison") -> dict[str, Any]:
    """A comparison for scripts."""
    hits = found.hits
    sides = zip((found.a, found.b), found.metrics, (hits.a, hits.b), strict=True)
    return {
        "data": found.data,
        "data_digest": found.data_digest,
        "num_rows": hits.num_rows,
        "versions": [
            {"ref": ref, "metric": metric, "value": share.value, "interval": share.interval}
            for ref, metric, share in sides
        ],
        "difference": hits.difference,
        "difference_interval": hits.difference_interval,
        "p_value": hits.p_value,
        "is_significant": hits.is_significant,
        "both_right": hits.both,
        "only_a_right": hits.only_a,
        "only_b_right": hits.only_b,
        "neither_right": hits.neither,
        "verdict": found.verdict,
        "notes": list(found.notes),
    }


def _lineage_json(found: "PromptLineage") -> dict[str, Any]:
    from orchestrator.cli.job_report import job_json
    from orchestrator.cli.prompt_report import version_json

    version = found.version
    return {
        **version_json(version),
        "base_fingerprint_now": found.current_base,
        "is_stale": found.current_base not in (None, version.lineage.base_fingerprint),
        "made_by": job_json(found.job) if found.job else None,
        "attempts": found.attempts,
        "promotions": found.promotions,
        "parents": [{"ref": each.ref, "digest": each.digest} for each in found.parents],
    }


def _stale_json(each: "StalePrompt") -> dict[str, Any]:
    lineage = each.version.lineage
    return {
        "ref": each.version.ref,
        "aliases": list(each.version.aliases),
        "base": lineage.base,
        "trained_on": lineage.base_fingerprint,
        "now": each.current_base,
        "can_retrain": each.submission is not None,
    }


def _stale_row(each: "StalePrompt") -> list[str]:
    lineage = each.version.lineage
    return [
        each.version.ref,
        ", ".join(each.version.aliases),
        lineage.base,
        short(lineage.base_fingerprint),
        short(each.current_base),
        "ready" if each.submission else "its spec is not here",
    ]
