import pytest
import torch
from torch import nn

from encoders.modules.eval_mode import eval_mode


def test_parts_run_without_dropout_or_gradient_and_go_back_to_their_own_modes() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)).train()
    module[0].eval()
    with pytest.raises(KeyError), eval_mode(module):
        assert not module[1].training
        assert not module(torch.ones(1, 2)).requires_grad
        raise KeyError
    assert module.training
    assert module[1].training
    assert not module[0].training
    assert module(torch.ones(1, 2)).requires_grad
