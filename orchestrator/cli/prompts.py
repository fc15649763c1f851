"""`tutti prompts`: versions, their evidence, and the aliases that point at them."""

from typing import Any

import click

from orchestrator.cli.output import (
    as_json_option,
    note,
    number,
    print_fields,
    print_json,
    print_table,
    when,
)
from orchestrator.domain.digest import short
from orchestrator.domain.prompt_version import PromptVersion


@click.group("prompts")
def command() -> None:
    """List, show and promote prompt versions."""


@command.command("list")
@click.option("--task", help="Versions of one task.")
@click.option("--alias", help="Only the versions an alias points at.")
@click.option("--evidence", is_flag=True, help="Beside the manual prompt, on the held-out rows.")
@click.option("--limit", default=1000, show_default=True, type=click.IntRange(1, 100_000))
@as_json_option
def list_(task: str | None, alias: str | None, evidence: bool, limit: int, as_json: bool) -> None:
    """List prompt versions."""
    from orchestrator.sdk import Tutti

    with Tutti() as tutti:
        versions = tutti.prompts(task, alias, limit)
    if as_json:
        print_json([version_json(version) for version in versions])
    elif not versions:
        note("no prompt versions: train some with `tutti train SPEC...`")
    elif evidence:
        print_evidence(versions)
    else:
        columns = ("prompt", "aliases", "metric", "value", "digest", "created")
        print_table(columns, [_row(version) for version in versions])


@command.command("show")
@click.argument("ref", metavar="TASK[@VERSION|@ALIAS]")
@as_json_option
def show(ref: str, as_json: bool) -> None:
    """Show one version: metrics, config and lineage."""
    from orchestrator.sdk import Tutti

    with Tutti() as tutti:
        version = tutti.prompt(ref)
    if as_json:
        print_json(version_json(version))
    else:
        print_fields(_fields(version))


@command.command("promote")
@click.argument("ref", metavar="TASK@VERSION")
@click.option("--to", "alias", default="production", show_default=True, help="The alias to move.")
@click.option("--when", help="A gate, in place of the spec's: 'accuracy > incumbent.accuracy'.")
@click.option("--reason", default="", help="Why; kept in the history.")
@click.option("--force", is_flag=True, help="Move the alias even if the gate does not hold.")
@as_json_option
def promote(
    ref: str, alias: str, when: str | None, reason: str, force: bool, as_json: bool
) -> None:
    """Point an alias at a version, if its gate holds; in SQL at once, in MLflow right after."""
    from orchestrator.sdk import Tutti

    with Tutti() as tutti:
        promotion = tutti.promote(ref, alias, when, reason, force)
        delivery = tutti.deliver()
    if delivery.error:
        note(f"MLflow has not heard yet (it will, later): {delivery.error}")
    if as_json:
        print_json(promotion)
    else:
        before = f"{promotion.task}@{promotion.from_version}" if promotion.from_version else "none"
        target = f"{promotion.task}@{promotion.to_version}"
        click.echo(f"{promotion.task}@{promotion.alias}: {before} -> {target}")


def print_evidence(versions: list[PromptVersion]) -> None:
    """The table that compares trained prompts with the manual ones they replace."""
    columns = (
        "task",
        "held-out rows",
        "manual",
        "trained",
        "better",
        "version",
        "aliases",
        "seconds",
    )
    print_table(columns, [_evidence(version) for version in versions])


def version_json(version: PromptVersion) -> dict[str, Any]:
    """A version as --json prints it."""
    return {
        "task": version.task,
        "version": version.number,
        "ref": version.ref,
        "digest": version.digest,
        "aliases": list(version.aliases),
        "metrics": dict(version.metrics),
        "config": dict(version.config),
        "artifacts": dict(version.artifacts),
        "lineage": _lineage(version),
        "created_at": version.created_at.isoformat(),
    }


def _lineage(version: PromptVersion) -> dict[str, Any]:
    lineage = version.lineage
    return {
        "base": lineage.base,
        "base_fingerprint": lineage.base_fingerprint,
        "datasets": dict(lineage.datasets),
        "num_rows": dict(lineage.num_rows),
        "spec_digest": lineage.spec_digest,
        "seed": lineage.seed,
        "code_version": lineage.code_version,
        "job": lineage.job,
        "parent": lineage.parent,
        "mlflow_run_id": version.run_id,
        "mlflow_model_version": version.model_version,
    }


def _row(version: PromptVersion) -> list[str]:
    metric = str(version.config["metric"])
    return [
        version.ref,
        ", ".join(version.aliases),
        metric,
        number(version.metrics.get(metric), 3),
        short(version.digest),
        when(version.created_at),
    ]


def _evidence(version: PromptVersion) -> list[str]:
    metric = str(version.config["metric"])
    manual = version.metrics.get(f"manual_{metric}")
    trained = version.metrics.get(metric)
    better = ""
    if manual is not None and trained is not None:
        gain = manual - trained if metric == "loss" else trained - manual
        better = "yes" if gain > 0 else "equal" if gain == 0 else "no"
    return [
        version.task,
        f"{version.metrics.get('held_out_rows', 0):.0f}",
        number(manual, 3),
        number(trained, 3),
        better,
        str(version.number),
        ", ".join(version.aliases),
        number(version.metrics.get("seconds"), 0),
    ]


def _fields(version: PromptVersion) -> dict[str, str]:
    lineage, encoder = version.lineage, version.config["encoder"]
    metrics = sorted(version.metrics.items())
    return {
        "prompt": version.ref,
        "digest": version.digest,
        "aliases": ", ".join(version.aliases) or "none",
        "template": str(version.config["template"]),
        "encoder": f"{encoder['type']}, {version.config['num_virtual_tokens']} virtual tokens",
        "candidates": ", ".join(version.config["candidates"] or ()) or "generated",
        **{f"metric {name}": f"{value:.4g}" for name, value in metrics},
        "base": f"{lineage.base} ({lineage.base_fingerprint})",
        **{
            f"data {split}": f"{lineage.num_rows.get(split, 0)} rows, sha256 {digest}"
            for split, digest in lineage.datasets.items()
        },
        "spec": lineage.spec_digest,
        "seed": str(lineage.seed),
        "code": lineage.code_version,
        "parent": f"{version.task}@{lineage.parent}" if lineage.parent else "none",
        "job": lineage.job or "none",
        "mlflow run": version.run_id or "not delivered yet",
        "mlflow model": f"{version.task} version {version.model_version}"
        if version.model_version
        else "not delivered yet",
        **{
            f"file {name}": f"sha256 {artifact.digest} ({artifact.num_bytes:,} bytes)"
            for name, artifact in version.artifacts.items()
        },
        "created": when(version.created_at),
    }
