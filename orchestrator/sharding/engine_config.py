"""DeepSpeed's config for a frozen base: its stage, and where the parts of a split base are kept.

Offload is DeepSpeed's `offload_param`: parts are fetched by layer, from main memory or a disk.
"""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.ops.op_builder import AsyncIOBuilder
from torch import nn

from orchestrator.domain.errors import TuttiError
from orchestrator.domain.gang import LIVE_PARAMETERS, Offload

LARGEST_WHOLE_PARAMETER = 10_000  # elements; norms and biases are not worth a collective call
NVME_BUFFERS = 8  # parts on their way from or to the disk
_AIO = {"block_size": 1 << 20, "queue_depth": 8, "single_submit": False, "overlap_events": True}


def engine_config(
    model: nn.Module, zero_stage: int, offload: Offload, offload_folder: Path | None
) -> dict[str, Any]:
    """DeepSpeed's config. Parts of a stage-3 base are offloaded; a whole base stays where it is."""
    zero: dict[str, Any] = {
        "stage": zero_stage,
        "stage3_param_persistence_threshold": LARGEST_WHOLE_PARAMETER,
        "stage3_max_live_parameters": LIVE_PARAMETERS,
        "stage3_max_reuse_distance": LIVE_PARAMETERS,
    }
    if zero_stage == 3 and offload != "none":
        zero["offload_param"] = {"device": offload, "pin_memory": torch.cuda.is_available()}
    if zero_stage == 3 and offload == "nvme":
        zero["offload_param"] |= _nvme_options(model, offload_folder)
    return {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": zero,
        "aio": _AIO,
        "steps_per_print": 2**31,
    }


def _nvme_options(model: nn.Module, folder: Path | None) -> dict[str, Any]:
    """Where parts lie on disk, and buffers that the largest of them fits."""
    if folder is None:
        raise TuttiError("offload to NVMe needs a folder", "Set TUTTI_OFFLOAD_FOLDER.")
    if not AsyncIOBuilder().is_compatible(verbose=False):
        raise TuttiError(
            "offload to NVMe needs DeepSpeed's operator async_io, which cannot be built on this "
            "machine: the library libaio or its headers are missing",
            "Install libaio-dev (Debian) or libaio-devel (Red Hat) on every worker's machine, or "
            "use TUTTI_OFFLOAD=cpu.",
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TuttiError(
            f"cannot keep parts of the base in {folder}: {error}", "Check TUTTI_OFFLOAD_FOLDER."
        ) from error
    largest = max(parameter.numel() for parameter in model.parameters())
    part = -(-largest // dist.get_world_size())
    return {
        "nvme_path": str(folder),
        "buffer_count": NVME_BUFFERS,
        "buffer_size": part,
        "max_in_cpu": 0,
    }
