"""How the workers of a run hold its bases: by their bytes, the machines' memory, the settings."""

from collections.abc import Sequence

from orchestrator.bootstrap import SILENT_LEASES, Parts
from orchestrator.inference.shard_worker import SplitPlan
from orchestrator.scheduling.inference_plan import is_small, plan_inference, together
from orchestrator.scheduling.shard_plan import BaseSize, ShardOptions, ShardPlan, forced_plan


def plan_bases(parts: Parts, fingerprints: Sequence[str], zero_stage: int = 0) -> ShardPlan:
    """The plan for all of them together, and why, in a line ("": there was nothing to ask). A run
    that began split goes on so: `zero_stage` is its own. The cluster must be up. Raises TuttiError
    where workers do not hold them even together."""
    if not fingerprints:
        return ShardPlan(0, "none", "")
    records = [parts.bases.get_by_fingerprint(each) for each in fingerprints]
    base = together([BaseSize(r.name, r.num_parameters, r.hidden_size) for r in records])
    made = _plan(parts, base)
    if made.zero_stage == 0 and zero_stage == 3 and parts.settings.zero_stage == "auto":
        reason = f"{base.name}: split over the workers (stage 3), as the run began"
        return ShardPlan(3, parts.settings.offload, reason)
    return made


def _plan(parts: Parts, base: BaseSize) -> ShardPlan:
    settings = parts.settings
    if settings.zero_stage == 3:
        return forced_plan(base, 3, settings.offload)
    gigabytes = settings.device_memory_gb
    if settings.zero_stage == 0 or (gigabytes is None and is_small(base)):
        return ShardPlan(0, "none", "")
    device_bytes = int(gigabytes * 1e9) if gigabytes else None
    options = ShardOptions(
        settings.num_workers, offload=settings.offload, device_bytes=device_bytes
    )
    return plan_inference(base, parts.nodes(), options)


def split_plan(parts: Parts, sharding: ShardPlan) -> SplitPlan | None:
    """What workers are told of a split base; None where each holds it whole."""
    if sharding.zero_stage == 0:
        return None
    settings = parts.settings
    fewest = min(max(sharding.min_workers, settings.min_workers), settings.num_workers)
    return SplitPlan(
        min_workers=fewest,
        max_workers=settings.num_workers,
        start_timeout_s=settings.start_timeout_s,
        silence_s=SILENT_LEASES * settings.lease_s,
        offload=sharding.offload,
        offload_folder=settings.offload_folder,
    )
