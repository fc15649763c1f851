"""The gate that a version's own spec sets for an alias."""

from orchestrator.domain.errors import UnknownName
from orchestrator.domain.gate import Gate
from orchestrator.domain.prompt_version import PromptVersion
from orchestrator.registry.job_queue import JobQueue


def own_gate(queue: JobQueue, version: PromptVersion, alias: str) -> Gate | None:
    """None where no job made the version, or its spec has no gate for `alias`."""
    if version.lineage.job is None:
        return None
    try:
        spec = queue.get(version.lineage.job).submission.spec
    except UnknownName:
        return None
    return spec.gate() if spec.promote and spec.promote.alias == alias else None
