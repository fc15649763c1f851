"""Tasks that all ranks train together: each takes its share of a step's rows, all the same step.

Replicas stay equal to the bit: they start from one seed, and every rank adds up all gradients in
the same order. The first rank judges held-out rows and speaks for these tasks. What exchanges
something is a collective act: all ranks call it with the same keys (of the trainers whose rows are
shared); without keys it does nothing.
"""

from collections.abc import Mapping, MutableMapping, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from orchestrator.training.evaluation import Score

T = TypeVar("T")


def own_share(rows: list[T]) -> list[T]:
    """This rank's rows of a step."""
    return rows[dist.get_rank() :: dist.get_world_size()]


def speaks() -> bool:
    """Whether this rank judges shared tasks and tells of them."""
    return dist.get_rank() == 0


def add_up(
    keys: Sequence[str], leaves: Mapping[str, Tensor], losses: MutableMapping[str, float]
) -> None:
    """Put the sums over all ranks in the gradients of leaves [V, D] and in the losses of `keys`."""
    if not keys:
        return
    parts = [torch.tensor([losses[key] for key in keys])]
    for key in keys:
        leaf = leaves[key]
        grad = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        parts.append(grad.cpu().flatten())
    own = torch.cat(parts)
    gathered = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, own)
    sums = torch.stack(gathered).sum(0).split([part.numel() for part in parts])
    for key, loss, grad in zip(keys, sums[0].tolist(), sums[1:], strict=True):
        losses[key] = loss
        leaves[key].grad = grad.view_as(leaves[key]).to(leaves[key])


def tell_scores(keys: Sequence[str], scores: Mapping[str, Score]) -> dict[str, Score]:
    """This rank's scores, and those of `keys` as the first rank has them."""
    if not keys:
        return dict(scores)
    told = [dict(scores) if speaks() else {}]
    dist.broadcast_object_list(told, src=0)
    return {**scores, **{key: told[0][key] for key in keys}}


def check_in_step(steps: Mapping[str, int]) -> None:
    """Raise RuntimeError unless shared jobs stand at the same steps on all ranks."""
    gathered: list[Mapping[str, int]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(gathered, dict(steps))
    if any(other != gathered[0] for other in gathered):
        raise RuntimeError(f"ranks stand at different steps of data-parallel jobs: {gathered}")
