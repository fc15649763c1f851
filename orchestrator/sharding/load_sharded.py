"""Loads a frozen base into DeepSpeed: whole on every rank (stage 0) or split over ranks (stage 3).

DeepSpeed is given no optimizer: the base never learns. `engine.module` is called, not the engine,
whose backward hooks want an optimizer. Under stage 3 every forward pass is a collective act: all
ranks make the same number of them, of the same modules in the same order.
"""

from pathlib import Path

import deepspeed
import torch

from encoders.packed.packed_model import PackedModel
from encoders.packed.padded_model import load_exact
from encoders.text.tokenization import TextTokenizer
from orchestrator.domain.gang import Offload
from orchestrator.sharding.engine_config import engine_config

_PROBES = ("The capital of France is", "1, 2, 3, 4,", "a")


def load_sharded(
    folder: Path,
    tokenizer: TextTokenizer,
    zero_stage: int,
    offload: Offload = "none",
    offload_folder: Path | None = None,
) -> PackedModel:
    """Load a base folder, shard it, and check it; the process group must be up.

    Raises PackingError where sharded logits differ from unsharded ones, TuttiError where parts
    cannot be offloaded.
    """
    model = load_exact(folder)
    probes = [ids for ids in map(tokenizer.encode, _PROBES) if ids]
    expected = [model.plain_logits(ids) for ids in probes]
    config = engine_config(model.model, zero_stage, offload, offload_folder)
    _skip_shm_compile()
    engine, *_ = deepspeed.initialize(model=model.model, config=config)
    model.model = engine.module
    model.check_exact(probes, expected)
    return model


def _skip_shm_compile() -> None:
    """Keep DeepSpeed on CPU from compiling its shared-memory collectives (a silent minute, and a
    stale lock that hangs every later start if it is killed); gloo serves as well."""
    if not torch.cuda.is_available():
        deepspeed.ops.__compatible_ops__ = {}
