"""The base on a rank of a gang, and what keeps its ranks in step.

Under stage 3 every forward pass is a collective act, so all ranks make the same number of them:
`rounds` agrees on it, and an idle rank runs `idle_batch`. Ranks that share a task's rows are kept
in step in the same way.
"""

from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from encoders.packed.packed_model import PackedModel
from encoders.packed.packing import PackedBatch, PackedRow, pack
from encoders.text.tokenization import TextTokenizer
from orchestrator.domain.gang import Offload
from orchestrator.sharding.load_sharded import load_sharded

IDLE = "idle"


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
        """Load a base folder as `load_sharded` does. `shares_rows` says that ranks train tasks
        together."""
        model = load_sharded(folder, tokenizer, zero_stage, offload, offload_folder)
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
