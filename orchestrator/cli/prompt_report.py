"""How prompt versions are printed: rows, evidence, everything about one, and JSON."""

from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.cli.output import number, print_table, when
from orchestrator.domain.digest import short
from orchestrator.domain.prompt_version import Approval, DescriptionChange, Lineage, PromptVersion


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
        "description": version.description,
        "tags": dict(version.tags),
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
        "is_dirty": lineage.is_dirty,
        "packages": dict(lineage.packages),
        "hardware": lineage.hardware,
        "author": lineage.author,
        "job": lineage.job,
        "origin": None if lineage.origin is None else dict(lineage.origin),
        "attempt": lineage.attempt,
        "parent": lineage.parent,
        "mlflow_run_id": version.run_id,
        "mlflow_model_version": version.model_version,
    }


def version_row(version: PromptVersion) -> list[str]:
    metric = str(version.config["metric"])
    return [
        version.ref,
        ", ".join(version.aliases),
        metric,
        number(version.metrics.get(metric), 3),
        short(version.digest),
        when(version.created_at),
    ]


def change_row(change: DescriptionChange) -> list[str]:
    """One change of a description or tag, for a table."""
    old, new = (text if text is not None else "none" for text in (change.old, change.new))
    return [change.field, old, new, change.actor, when(change.changed_at)]


def _job(lineage: Lineage) -> str:
    if lineage.job is None:
        return "none"
    return f"{lineage.job}, attempt {lineage.attempt}" if lineage.attempt else lineage.job


def _origin(origin: Mapping[str, str]) -> str:
    """Where an imported version was made: its name, registry, time and job there."""
    job = f", by job {origin['job']}" if "job" in origin else ""
    return f"from {origin['ref']} of {origin['registry']}, made {origin['created_at']}{job}"


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


def version_fields(version: PromptVersion, approvals: Sequence[Approval]) -> dict[str, str]:
    lineage, encoder = version.lineage, version.config["encoder"]
    metrics = sorted(version.metrics.items())
    return {
        "prompt": version.ref,
        "digest": version.digest,
        "aliases": ", ".join(version.aliases) or "none",
        **({"description": version.description} if version.description else {}),
        **{f"tag {key}": value for key, value in version.tags.items()},
        "approved by": ", ".join(each.actor for each in approvals) or "nobody",
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
        **{f"package {name}": value for name, value in lineage.packages.items()},
        **({"hardware": lineage.hardware} if lineage.hardware else {}),
        "parent": f"{version.task}@{lineage.parent}" if lineage.parent else "none",
        "author": lineage.author or "unknown",
        "job": _job(lineage),
        **({"imported": _origin(lineage.origin)} if lineage.origin else {}),
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
