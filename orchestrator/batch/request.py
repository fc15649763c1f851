"""What a batch run is asked for, checked and pinned before anything is written or started."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator.batch_data.batch_input import Input
from orchestrator.batch_data.output_target import OutputTarget, check_target
from orchestrator.batch_data.scan import DEFAULT_SHARD_ROWS, scan
from orchestrator.bootstrap import Parts
from orchestrator.code_version import code_version
from orchestrator.domain.batch import BatchSettings
from orchestrator.domain.batch_run import Pin, RunPlan
from orchestrator.domain.decoding_check import check_decoding
from orchestrator.domain.errors import InvalidData, InvalidInput, UnknownName
from orchestrator.domain.prompt_version import PromptRef

MAX_REFERENCES = 10_000


@dataclass(frozen=True)
class BatchRequest:
    """A file, folder or glob to answer, as a path or fsspec URL; where answers go: a folder, or one
    file if its name ends in .jsonl or .parquet. `format`: jsonl or parquet, None: as named."""

    source: str | Path
    output: str | Path
    settings: BatchSettings = field(default_factory=BatchSettings)
    format: str | None = None
    shard_rows: int = DEFAULT_SHARD_ROWS


@dataclass(frozen=True)
class CheckedRequest:
    """A request that can be run: all that is fixed of the run."""

    plan: RunPlan
    input: Input
    target: OutputTarget


def check_request(parts: Parts, request: BatchRequest) -> CheckedRequest:
    """Read the input once, resolve each reference once, check the output and the bases' files.
    Raises InvalidInput; nothing is written."""
    settings = request.settings
    check_settings(settings)
    target = OutputTarget.parse(request.output, request.format)
    refs: dict[str, PromptRef] = {}

    def note_ref(ref: PromptRef) -> None:
        refs.setdefault(str(ref), ref)
        if len(refs) > MAX_REFERENCES:
            raise InvalidData(
                f"{request.source}: its rows name more than {MAX_REFERENCES} different prompts",
                "Is `task` the right column? Cut the input into several runs otherwise.",
            )

    source = scan(request.source, request.shard_rows, settings, note_ref)
    check_target(target, source)
    pins = _resolve(parts, refs, settings)
    plan = RunPlan(
        input=source.to_json(),
        settings=settings.to_json(),
        pins=pins,
        output=target.url,
        format=str(target.format),
        shard_rows=request.shard_rows,
        shard_sizes=tuple(shard.num_rows for shard in source.shards),
        num_threads=parts.threads_per_worker,
        code_version=code_version(),
    )
    for fingerprint in plan.bases:
        parts.base_store.verify(fingerprint)
    return CheckedRequest(plan, source, target)


def check_settings(settings: BatchSettings) -> None:
    """Raise InvalidInput for what no mode or decoding can mean."""
    check_decoding(settings.decoding)
    for name, column in settings.columns.items():
        if not name or not column:
            raise InvalidInput("--map: a field and its column have names", "Write field=column.")


def _resolve(
    parts: Parts, refs: Mapping[str, PromptRef], settings: BatchSettings
) -> dict[str, Pin]:
    """What each reference stands for from now on. One that all rows have must be there."""
    pins: dict[str, Pin] = {}
    for text, ref in sorted(refs.items()):
        try:
            pins[text] = Pin.of(parts.prompts.resolve(ref))
        except UnknownName as error:
            if settings.prompt is not None:
                raise
            pins[text] = Pin(ref.task, error=error.message)
    return pins
