"""What workers are given of a run: its pins as versions, its bases as folders, where parts go."""

from orchestrator.batch_data.batch_input import Input
from orchestrator.batch_data.part_file import OutputFormat
from orchestrator.bootstrap import Parts
from orchestrator.domain.batch import BatchSettings
from orchestrator.domain.batch_run import Pin, RunPlan
from orchestrator.domain.errors import IntegrityError
from orchestrator.domain.prompt_version import PromptRef, PromptVersion
from orchestrator.inference.row_answers import AnswerPlan, ServedBase
from orchestrator.inference.shard_worker import WorkerPlan


def worker_plan(parts: Parts, plan: RunPlan, parts_folder: str) -> WorkerPlan:
    """Look up what the run pinned. Raises IntegrityError where a version is another one now, which
    a restored database may have."""
    versions = {
        ref: _pinned(parts, pin) for ref, pin in plan.pins.items() if pin.number is not None
    }
    unresolved = {ref: pin.error for ref, pin in plan.pins.items() if pin.error is not None}
    bases = {
        fingerprint: ServedBase(
            parts.base_store.path(fingerprint),
            parts.bases.get_by_fingerprint(fingerprint).max_length,
        )
        for fingerprint in plan.bases
    }
    answers = AnswerPlan(
        settings=BatchSettings.from_json(plan.settings),
        versions=versions,
        unresolved=unresolved,
        bases=bases,
        artifact_url=parts.artifacts.url,
        num_threads=plan.num_threads,
        weight_copies_bytes=parts.settings.weight_copies_mb << 20,
    )
    source = Input.from_json(plan.input)
    return WorkerPlan(source, answers, parts_folder, OutputFormat(plan.format))


def _pinned(parts: Parts, pin: Pin) -> PromptVersion:
    version = parts.prompts.resolve(PromptRef(pin.task, pin.number))
    if version.digest != pin.digest:
        raise IntegrityError(
            f"{version.ref} is {version.digest[:12]}, and was {(pin.digest or '')[:12]} when the "
            "run started",
            "Was the database restored? Start a new run.",
        )
    return version
