"""A version's curves: what was measured at which step of its training."""

import json
import math
from collections.abc import Mapping, Sequence

from orchestrator.artifacts.artifact_store import ArtifactStore
from orchestrator.domain.errors import IntegrityError
from orchestrator.domain.prompt_version import PromptVersion

#: `loss`, `learning_rate`, `eval_accuracy`, ...: each a list of (step, value), steps growing.
Series = Sequence[tuple[int, float]]
Curve = Mapping[str, Series]

MAX_BYTES = 1 << 28


def read_curve(version: PromptVersion, artifacts: ArtifactStore) -> Curve:
    """The version's curves; empty if it has none. Raises IntegrityError for an artifact that is
    away, or holds no curves."""
    artifact = version.artifacts.get("curve")
    if artifact is None:
        return {}
    data = artifacts.get_bytes(artifact.digest, MAX_BYTES)
    try:
        return {
            str(name): [(int(step), float(value)) for step, value in series]
            for name, series in dict(json.loads(data)).items()
        }
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise IntegrityError(
            f"the artifact `curve` of {version.ref} holds no curves: {error}"
        ) from error


def finite(series: Series) -> Series:
    return [(step, value) for step, value in series if math.isfinite(value)]


def thin(series: Series, num_points: int) -> Series:
    """At most `num_points` of a series, evenly spread, the first and last among them."""
    if len(series) <= num_points:
        return series
    stride = (len(series) - 1) / (num_points - 1)
    return [series[round(index * stride)] for index in range(num_points)]


def held_out(curve: Curve, metric: str) -> Series:
    """The metric on held-out rows against steps."""
    return finite(curve.get(f"eval_{metric}") or curve.get(metric) or ())


def metric_of(version: PromptVersion) -> str:
    """The metric that chose the version's best step."""
    return str(version.config.get("metric") or "accuracy")
