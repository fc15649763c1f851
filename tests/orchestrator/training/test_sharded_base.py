import torch

from encoders.packed.packing import PackedRow, pack
from orchestrator.training.sharded_base import ShardedBase


def test_a_rank_on_its_own_makes_its_own_number_of_passes(base: ShardedBase) -> None:
    assert [base.rounds(n) for n in (0, 1, 7)] == [0, 1, 7]
    assert base.any_rank(True)
    assert not base.any_rank(False)


def test_an_idle_pass_takes_a_gradient_that_nobody_uses(base: ShardedBase) -> None:
    batch, virtual = base.idle_batch()
    base.model.logits(batch, virtual).sum().mul(0).backward()
    (table,) = virtual.values()
    assert table.grad is not None
    assert float(table.grad.abs().max()) == 0


def test_the_base_gives_its_plain_logits(base: ShardedBase) -> None:
    logits = base.model.logits(pack([PackedRow(None, (5, 6, 7))], {}), {})
    assert torch.allclose(logits[0], base.model.plain_logits((5, 6, 7)), atol=1e-5)
