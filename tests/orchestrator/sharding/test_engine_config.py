from pathlib import Path

import pytest
import torch
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from torch import nn

from orchestrator.domain.errors import TuttiError
from orchestrator.sharding import engine_config as module
from orchestrator.sharding.engine_config import engine_config

MODEL = nn.Linear(30, 5)


def test_a_whole_base_is_never_offloaded() -> None:
    zero = engine_config(MODEL, 0, "nvme", None)["zero_optimization"]
    assert zero["stage"] == 0
    assert "offload_param" not in zero


def test_deepspeed_understands_every_option() -> None:
    for offload in ("none", "cpu"):
        zero = DeepSpeedZeroConfig(**engine_config(MODEL, 3, offload, None)["zero_optimization"])
        assert zero.stage == 3
        assert zero.max_live_parameters == zero.max_reuse_distance == module.LIVE_PARAMETERS
        assert (zero.offload_param is None) == (offload == "none")
    assert zero.offload_param.device == "cpu"
    assert zero.offload_param.pin_memory == torch.cuda.is_available()


def test_nvme_without_its_operator_is_refused_with_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.AsyncIOBuilder, "is_compatible", lambda self, verbose=False: False)
    with pytest.raises(
        TuttiError, match="async_io, which cannot be built on this machine"
    ) as error:
        engine_config(MODEL, 3, "nvme", tmp_path)
    assert "libaio-dev" in error.value.remedy


@pytest.fixture
def operator_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.AsyncIOBuilder, "is_compatible", lambda self, verbose=False: True)
    monkeypatch.setattr(module.dist, "get_world_size", lambda: 2)


@pytest.mark.usefixtures("operator_is_there")
def test_nvme_buffers_fit_the_largest_part(tmp_path: Path) -> None:
    folder = tmp_path / "made" / "here"
    config = engine_config(MODEL, 3, "nvme", folder)
    offload = DeepSpeedZeroConfig(**config["zero_optimization"]).offload_param
    assert (offload.device, offload.nvme_path) == ("nvme", folder)
    assert (offload.buffer_size, offload.max_in_cpu) == (75, 0)
    assert folder.is_dir()
    assert config["aio"]["block_size"] == 1 << 20


@pytest.mark.usefixtures("operator_is_there")
def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TuttiError, match=r"cannot keep parts of the base in .*file/folder"):
        engine_config(MODEL, 3, "nvme", tmp_path / "file" / "folder")
    with pytest.raises(TuttiError, match="needs a folder"):
        engine_config(MODEL, 3, "nvme", None)
