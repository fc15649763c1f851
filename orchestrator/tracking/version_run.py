"""What a prompt version looks like as an MLflow run: its params, tags, metrics and times.

Pure, and the same on every call, so that telling MLflow a second time changes nothing.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from orchestrator.domain.prompt_version import PromptVersion
from orchestrator.tracking.curve import Curve, finite, metric_of, thin

#: MLflow's own limits on a param's value and a series we would want to look at.
MAX_PARAM_CHARS = 6000
MAX_POINTS = 1000
#: Series are named apart from the version's metrics, which are those of its best step.
SERIES_PREFIX = "training/"
REF_TAG, DIGEST_TAG, BASE_TAG = "tutti.ref", "tutti.digest", "tutti.base"
#: Of a registered model, for aliases that MLflow cannot have: its value is TASK@NUMBER.
ALIAS_TAG = "tutti.alias."


@dataclass(frozen=True)
class Point:
    """One value of one metric."""

    name: str
    value: float
    timestamp_ms: int
    step: int


def run_tags(version: PromptVersion) -> dict[str, str]:
    """The tags of the run: identity first, then lineage."""
    lineage = version.lineage
    datasets = {f"tutti.dataset.{split}": d for split, d in lineage.datasets.items()}
    return {
        **model_version_tags(version),
        "tutti.base_fingerprint": lineage.base_fingerprint,
        "tutti.spec_digest": lineage.spec_digest,
        "tutti.code_version": lineage.code_version,
        **({"tutti.job": lineage.job} if lineage.job else {}),
        **({"tutti.parent": f"{version.task}@{lineage.parent}"} if lineage.parent else {}),
        **datasets,
        "mlflow.source.name": "tutti",
    }


def model_version_tags(version: PromptVersion) -> dict[str, str]:
    return {REF_TAG: version.ref, DIGEST_TAG: version.digest, BASE_TAG: version.lineage.base}


def run_params(version: PromptVersion) -> dict[str, str]:
    """The config, flattened with dots, and the lineage that one compares runs by."""
    lineage = version.lineage
    values = {
        **version.config,
        "base": lineage.base,
        "seed": lineage.seed,
        "num_rows": dict(lineage.num_rows),
    }
    return {name: text[:MAX_PARAM_CHARS] for name, text in _flatten(values)}


def run_points(version: PromptVersion, curve: Curve) -> list[Point]:
    """The curves as metric steps, then the version's metrics at the last step."""
    start_ms, end_ms = time_span_ms(version)
    last_step = max((series[-1][0] for series in curve.values() if series), default=0)
    duration_ms = end_ms - start_ms
    points = [
        Point(f"{SERIES_PREFIX}{name}", value, start_ms + duration_ms * step // last_step, step)
        for name, series in curve.items()
        for step, value in thin(finite(series), MAX_POINTS)
        if last_step
    ]
    final = [Point(name, value, end_ms, last_step) for name, value in version.metrics.items()]
    return points + final


def time_span_ms(version: PromptVersion) -> tuple[int, int]:
    """When its training began and ended, in milliseconds since 1970."""
    end_ms = int(version.created_at.timestamp() * 1000)
    return end_ms - int(version.metrics.get("seconds", 0) * 1000), end_ms


def version_json(version: PromptVersion) -> str:
    """The registered version as JSON, without what may still change."""
    value = asdict(version)
    for name in ("aliases", "description", "tags", "run_id", "model_version"):
        value.pop(name)
    return json.dumps(
        value | {"created_at": version.created_at.isoformat()}, indent=2, ensure_ascii=False
    )


def describe(version: PromptVersion) -> str:
    """One sentence for a list of versions: the score, the manual prompt's, the rows, the base."""
    metric = metric_of(version)
    score, manual = version.metrics.get(metric), version.metrics.get(f"manual_{metric}")
    rows = version.metrics.get("held_out_rows")
    parts = [
        version.ref,
        f"{metric} {score:.3f}" if score is not None else None,
        f"manual prompt {manual:.3f}" if manual is not None else None,
        f"{rows:.0f} held-out rows" if rows is not None else None,
        version.lineage.base,
    ]
    return " · ".join(part for part in parts if part)


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple):
            yield f"{prefix}{key}", json.dumps(value, ensure_ascii=False)
        else:
            yield f"{prefix}{key}", str(value)
