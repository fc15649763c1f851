"""DeepSpeed around the frozen base: whole on every rank (stage 0) or split over ranks (stage 3).

DeepSpeed is given no optimizer: the base never learns. `engine.module` is called, not the engine,
whose backward hooks want an optimizer. Under stage 3 every forward pass is a collective act, so all
ranks make the same number of them: `rounds` agrees on it, and an idle rank runs `idle_batch`. Ranks
that share a task's rows are kept in step in the same way.
"""

from pathlib import Path

import deepspeed
import torch
import torch.distributed as dist
from torch import Tensor

from encoders.packed.packed_model import PackedModel
from encoders.packed.packing import PackedBatch, PackedRow, pack
from encoders.packed.padded_model import load_exact
from encoders.text.tokenization import TextTokenizer
from orchestrator.domain.gang import Offload
from orchestrator.training.engine_config import engine_config

IDLE = "idle"
_PROBES = ("The capital of France is", "1, 2, 3, 4,", "a")


class ShardedBase:
    """A base model on this rank, checked to give its plain logits packed and sharded."""

    def __init__(self, model: PackedModel, zero_stage: int, shares_rows: bool = False) -> None:
        self.model = model
        self._is_collective = (zero_stage == 3 or shares_rows) and dist.get_world_size() > 1

    @classmethod
    def load(
        cls,
        folder: Path,
        tokenizer: TextTokenizer,
        zero_stage: int,
        *,
        offload: Offload = "none",
        offload_folder: Path | None = None,
        shares_rows: bool = False,
    ) -> "ShardedBase":
        """Load a base folder, shard it, and check it; the process group must be up.

        `shares_rows` says that ranks train tasks together. Raises PackingError where sharded logits
        differ from unsharded ones, TuttiError where parts cannot be offloaded.
        """
        model = load_exact(folder)
        probes = [ids for ids in map(tokenizer.encode, _PROBES) if ids]
        expected = [model.plain_logits(ids) for ids in probes]
        config = engine_config(model.model, zero_stage, offload, offload_folder)
        _skip_shm_compile()
        engine, *_ = deepspeed.initialize(model=model.model, config=config)
        model.model = engine.module
        model.check_exact(probes, expected)
        return cls(model, zero_stage, shares_rows)

    def rounds(self, num_batches: int) -> int:
        """How many forward passes every rank makes now, given this rank's own number."""
        if not self._is_collective:
            return num_batches
        most = torch.tensor([num_batches], device=self.model.device)
        dist.all_reduce(most, op=dist.ReduceOp.MAX)
        return int(most)

    def any_rank(self, flag: bool) -> bool:
        """Whether `flag` is set on any rank whose forward passes are tied to this one's."""
        return self.rounds(int(flag)) > 0

    def idle_batch(self) -> tuple[PackedBatch, dict[str, Tensor]]:
        """The smallest batch, with a virtual token that takes a gradient nobody uses."""
        batch = pack([PackedRow(IDLE, (-1, 0))], {IDLE: 1})
        return batch, {IDLE: torch.zeros(1, self.model.token_dim, requires_grad=True)}


def _skip_shm_compile() -> None:
    """Keep DeepSpeed on CPU from compiling its shared-memory collectives (a silent minute, and a
    stale lock that hangs every later start if it is killed); gloo serves as well."""
    if not torch.cuda.is_available():
        deepspeed.ops.__compatible_ops__ = {}
