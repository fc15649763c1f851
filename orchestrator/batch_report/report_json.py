"""A report as JSON values: what `tutti batch report --json` prints."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from orchestrator.batch_report.batch_report import BatchReport
from orchestrator.batch_report.version_report import VersionReport
from orchestrator.domain.paired_hits import Share

DIGITS = 6


def report_json(report: BatchReport) -> dict[str, Any]:
    """A run's facts and figures; what is not known is null."""
    facts = report.facts
    return {
        "run": facts.id,
        "state": facts.state,
        "created_at": facts.created_at,
        "output": facts.output,
        "settings": _plain(facts.settings),
        "inputs": _plain(facts.inputs),
        "pinned": {v.ref: {"digest": v.digest, "base": v.base} for v in facts.versions},
        "shards": {"finished": len(facts.shards), "all": facts.num_shards},
        "num_rows": report.num_rows,
        "num_errors": report.num_errors,
        "num_tokens": report.num_tokens,
        "seconds": _rounded(facts.seconds),
        "rows_per_s": _rounded(report.rows_per_s),
        "tokens_per_s": _rounded(report.tokens_per_s),
        "positions_per_s": _rounded(report.positions_per_s),
        "seconds_per_row": _latency(report),
        "versions": [
            _version_json(version) | {"seconds_per_row": _latency(report, version.name)}
            for version in report.versions
        ],
    }


def share_json(share: Share | None) -> dict[str, Any] | None:
    """A share with its interval of 95%."""
    if share is None:
        return None
    return {
        "value": _rounded(share.value),
        "interval": [_rounded(end) for end in share.interval],
        "right": share.num_hits,
        "known": share.num_rows,
    }


def _latency(report: BatchReport, ref: str | None = None) -> dict[str, float | None]:
    return {
        f"p{percent}": _rounded(report.seconds_per_row(percent / 100, ref)) for percent in (50, 95)
    }


def _version_json(version: VersionReport) -> dict[str, Any]:
    return {
        "task": _plain(version.task),
        "version": version.version,
        "num_rows": version.num_rows,
        "num_errors": version.num_errors,
        "errors": _plain([dataclasses.asdict(reason) for reason in version.reasons]),
        "accuracy": share_json(version.hits),
        "mean_log_likelihood": _rounded(version.mean_log_likelihood),
        "num_tokens": version.num_tokens,
        "scores": _plain(version.calibration),
        "confusion": _plain(version.confusion),
    }


def _plain(value: Any) -> Any:
    """A frozen value as JSON, floats rounded; half a surrogate becomes text that can be printed."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain(dataclasses.asdict(value))
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, Mapping):
        return {_plain(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return _rounded(value) if isinstance(value, float) else value


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, DIGITS)
