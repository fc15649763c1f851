"""What a version's own spec says: its gate for an alias, its manual prompt."""

from orchestrator.domain.errors import UnknownName
from orchestrator.domain.gate import Gate
from orchestrator.domain.prompt_version import PromptVersion
from orchestrator.domain.task_spec import TaskSpec
from orchestrator.registry.job_queue import JobQueue


def own_spec(queue: JobQueue, version: PromptVersion) -> TaskSpec | None:
    """The spec of the job that made the version; None where no job of this registry did."""
    if version.lineage.job is None:
        return None
    try:
        return queue.get(version.lineage.job).submission.spec
    except UnknownName:
        return None


def own_gate(queue: JobQueue, version: PromptVersion, alias: str) -> Gate | None:
    """The gate that the version's spec sets for `alias`."""
    spec = own_spec(queue, version)
    return spec.gate() if spec and spec.promote and spec.promote.alias == alias else None


def own_manual_prompt(queue: JobQueue, version: PromptVersion) -> str | None:
    spec = own_spec(queue, version)
    return spec.evaluation.manual_prompt if spec else None
