"""Bases loaded in several threads at once are whole, and leave torch as it was."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from encoders.packed.packed_model import PackedModel
from tests.tiny import make_tiny_base

PROBE = (5, 6, 7)


def test_bases_load_in_threads_as_one_after_the_other(tmp_path: Path) -> None:
    folder = make_tiny_base(tmp_path)
    alone = PackedModel.load(folder).plain_logits(PROBE)
    with ThreadPoolExecutor(4) as threads:
        models = list(threads.map(PackedModel.load, [folder] * 16))
    for model in models:
        assert torch.equal(model.plain_logits(PROBE), alone)
    assert torch.nn.Linear(2, 2).weight.device.type == "cpu"
    assert torch.equal(PackedModel.load(folder).plain_logits(PROBE), alone)
