import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from encoders.config import PromptEncoderConfig, PromptTuningConfig
from encoders.errors import ConfigError, EncoderError, WeightsError
from encoders.formats.key_values import KeyValues, export_key_values
from encoders.formats.peft_format import WEIGHTS_NAME, Adapter, save_adapter, write_adapter
from encoders.formats.prompt_embeds import PromptEmbeds, export_prompt_embeds
from encoders.formats.prompt_loader import load_prompt
from encoders.formats.prompt_table import PromptTable, export_prompt_table
from encoders.formats.training_state import MANIFEST_NAME, TrainingState, save_training_state
from encoders.modules.prompt_encoder import PromptEncoder
from tests.encoders.hostile_files import NO_SAFETENSORS, entry, file_of, pickle_bomb

ROOT = Path(__file__).parents[3]
TABLE = torch.randn(3, 4)
CONFIG = PromptEncoderConfig(num_virtual_tokens=3, token_dim=4, encoder_hidden_size=5)


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    save_adapter(tmp_path / "adapter", CONFIG, PromptEncoder(CONFIG))
    return tmp_path / "adapter"


@pytest.fixture
def state(tmp_path: Path) -> Path:
    encoder = PromptEncoder(CONFIG)
    optimizer = torch.optim.AdamW(encoder.parameters())
    save_training_state(tmp_path / "state", encoder=encoder, optimizer=optimizer, step=7)
    return tmp_path / "state"


def test_any_kind_of_prompt_is_recognised_and_comes_back_typed(
    tmp_path: Path, adapter: Path, state: Path
) -> None:
    export_prompt_table(tmp_path / "table.npy", {"a": TABLE})
    export_prompt_embeds(tmp_path / "embeds.safetensors", {"a": TABLE})
    export_key_values(tmp_path / "keys.safetensors", KeyValues(*torch.randn(2, 1, 2, 3, 4)))

    found: Any = load_prompt(adapter)
    assert isinstance(found, Adapter)
    assert found.config.token_dim == 4
    found = load_prompt(str(state))
    assert isinstance(found, TrainingState)
    assert found.step == 7
    found = load_prompt(tmp_path / "table.npy")
    assert isinstance(found, PromptTable)
    assert torch.equal(found.virtual_tokens("a"), TABLE)
    found = load_prompt(tmp_path / "embeds.safetensors")
    assert isinstance(found, PromptEmbeds)
    assert torch.equal(found.inputs["a"], TABLE)
    found = load_prompt(tmp_path / "keys.safetensors")
    assert isinstance(found, KeyValues)
    assert found.keys.shape == (1, 2, 3, 4)


def test_what_is_no_prompt_is_refused_with_the_reason(tmp_path: Path, adapter: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="Can't find 'adapter_config.json'"):
        load_prompt(tmp_path / "empty")
    with pytest.raises(WeightsError, match="of an adapter give the whole folder"):
        load_prompt(adapter / WEIGHTS_NAME)
    with pytest.raises(WeightsError, match="cannot be opened"):
        load_prompt(tmp_path / "nothing")
    with pytest.raises(WeightsError, match="not a safetensors file"):
        load_prompt(adapter / "adapter_config.json")


def test_a_folder_of_two_kinds_is_refused_since_one_would_be_a_guess(
    adapter: Path, state: Path
) -> None:
    for path in state.iterdir():
        shutil.copy(path, adapter)
    with pytest.raises(WeightsError, match="holds both an adapter and a training state"):
        load_prompt(adapter)


@pytest.mark.parametrize("name", NO_SAFETENSORS)
def test_a_hostile_file_is_refused_wherever_weights_may_stand(
    tmp_path: Path, adapter: Path, name: str
) -> None:
    data, reason = NO_SAFETENSORS[name]
    for path in (tmp_path / "a", tmp_path / "a.safetensors", adapter / WEIGHTS_NAME):
        path.write_bytes(data)
        where = adapter if path.parent == adapter else path
        with pytest.raises(WeightsError, match=f"^{path}: not a safetensors file: .*{reason}"):
            load_prompt(where)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("suffix", [".npy", ".pt", ".bin", ".pkl", ".ids.json", ""])
def test_a_pickle_is_never_run_whatever_its_name(
    tmp_path: Path, suffix: str, protocol: int
) -> None:
    path = tmp_path / f"prompt{suffix}"
    path.write_bytes(pickle_bomb(protocol))
    with pytest.raises(WeightsError):
        load_prompt(path)
    for name in ("adapter_config.json", MANIFEST_NAME):
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).write_bytes(pickle_bomb(protocol))
        with pytest.raises(EncoderError, match="not JSON"):
            load_prompt(folder)


def test_an_adapter_cut_short_anywhere_is_refused(adapter: Path) -> None:
    for name in (WEIGHTS_NAME, "adapter_config.json"):
        data = (adapter / name).read_bytes()
        for length in range(len(data)):
            (adapter / name).write_bytes(data[:length])
            with pytest.raises(EncoderError):
                load_prompt(adapter)
        (adapter / name).write_bytes(data)
    load_prompt(adapter)


def test_a_state_cut_short_anywhere_is_refused(state: Path) -> None:
    for path in state.iterdir():
        data = path.read_bytes()
        for length in {*range(0, len(data), 97), len(data) - 1}:
            path.write_bytes(data[:length])
            with pytest.raises(WeightsError):
                load_prompt(state)
        path.write_bytes(data)
    load_prompt(state)


@pytest.mark.parametrize("name", [WEIGHTS_NAME, "adapter_config.json"])
@pytest.mark.parametrize("kind", ["device", "pipe", "folder", "loop"])
def test_what_stands_in_a_files_place_is_refused(adapter: Path, name: str, kind: str) -> None:
    path = adapter / name
    path.unlink()
    put: dict[str, Callable[[], None]] = {
        "device": lambda: path.symlink_to("/dev/zero"),
        "pipe": lambda: os.mkfifo(path),
        "folder": path.mkdir,
        "loop": lambda: path.symlink_to(path),
    }
    put[kind]()
    with pytest.raises(EncoderError, match=f"{adapter}"):
        load_prompt(adapter)


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/urandom", "/dev/stdin"])
def test_a_device_is_refused(device: str, tmp_path: Path) -> None:
    (tmp_path / "a.npy").symlink_to(device)
    (tmp_path / "a.ids.json").symlink_to(device)
    for path in (Path(device), tmp_path / "a.npy"):
        with pytest.raises(WeightsError, match="not a regular file|cannot be opened|not a safete"):
            load_prompt(path)


def make_gibibytes(path: Path, names: tuple[str, ...], metadata: dict[str, str]) -> Path:
    """A sound file, sparse, of one-dimensional tensors of 1 GiB each."""
    header: dict[str, Any] = {"__metadata__": metadata}
    for i, name in enumerate(names):
        header |= entry([1 << 28], [i << 30, (i + 1) << 30], name=name)
    data = file_of(header)
    with path.open("wb") as file:
        file.write(data)
        file.truncate(len(data) + (len(names) << 30))
    return path


def make_absurd_files(folder: Path) -> list[Path]:
    """Small files, or sparse ones that take no disk, that ask for terabytes."""
    paths = []
    write_adapter(folder / "a", Adapter(CONFIG, {"prompt_embeddings": TABLE}, {}))
    huge = PromptTuningConfig(num_virtual_tokens=1 << 15, token_dim=1 << 16)
    sizes = {
        "shape": file_of(entry(shape=[10**12], name="prompt_embeddings")),
        "header": (1 << 40).to_bytes(8, "little") + b"{}",
        "offsets": file_of(entry([10**12], [0, 4 * 10**12], name="prompt_embeddings")),
        "config": file_of(entry([1 << 15, 1 << 16], [0, 1 << 33], name="prompt_embeddings")),
    }
    for name, data in sizes.items():
        path = folder / name
        shutil.copytree(folder / "a", path)
        (path / WEIGHTS_NAME).write_bytes(data)
        if name == "config":
            huge.save_pretrained(path)
        paths.append(path)
    for kind in ("prompt_embeds", "key_values"):
        facts = json.dumps({"kind": kind, "model_type": None, "first_position": 0})
        facts = json.dumps({"kind": kind}) if kind == "prompt_embeds" else facts
        names = ("a",) if kind == "prompt_embeds" else ("keys", "values")
        paths.append(make_gibibytes(folder / kind, names, {"tutti": facts}))
    shutil.copytree(folder / "a", folder / "longer")
    make_gibibytes(folder / "longer" / WEIGHTS_NAME, ("prompt_embeddings",), {"format": "pt"})
    paths.append(folder / "longer")
    for name, size in {"sparse.safetensors": 1 << 42, "sparse.npy": 1 << 42}.items():
        with (folder / name).open("wb") as file:
            file.write(file_of(entry([10**12], [0, 4 * 10**12])))
            file.truncate(size)
        paths.append(folder / name)
    (folder / "sparse.ids.json").write_text(json.dumps({"sha256": "0" * 64, "prompts": {}}))
    (folder / "state").mkdir()
    with (folder / "state" / MANIFEST_NAME).open("wb") as file:
        file.truncate(1 << 42)
    with (folder / "a" / "adapter_config.json").open("wb") as file:
        file.truncate(1 << 42)
    return [*paths, folder / "state", folder / "a"]


def test_absurd_sizes_are_refused_before_memory_is_taken(tmp_path: Path) -> None:
    """In a process that may take 64 MiB more than it has."""
    paths = make_absurd_files(tmp_path)
    code = """
import resource, sys
import torch
torch.set_num_threads(1)
from encoders.errors import EncoderError
from encoders.formats.prompt_loader import load_prompt
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + (64 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    torch.empty(32 << 20)  # 128 MiB: the limit holds
except RuntimeError:
    print("limited")
for path in sys.argv[1:]:
    try:
        load_prompt(path)
    except EncoderError as error:
        print("refused", path, error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, paths)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stdout.splitlines()
    assert lines[0] == "limited"
    assert [line.split()[:2] for line in lines[1:]] == [["refused", str(path)] for path in paths]


def test_a_head_of_any_size_is_bounded_by_its_file(adapter: Path) -> None:
    values = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(values | {"task_type": "SEQ_CLS"}))
    head = {"base_model.classifier.weight": torch.ones(2, 4)}
    save_file({"prompt_embeddings": TABLE} | head, adapter / WEIGHTS_NAME)
    found = load_prompt(adapter)
    assert isinstance(found, Adapter)
    assert found.heads.keys() == {"classifier.weight"}
    data = file_of(
        entry([3, 4], [0, 48], name="prompt_embeddings")
        | entry([10**12], [48, 4 * 10**12 + 48], name="base_model.classifier.weight"),
        b"\0" * 48,
    )
    (adapter / WEIGHTS_NAME).write_bytes(data)
    with pytest.raises(WeightsError, match="its tensors take 4000000000048 bytes"):
        load_prompt(adapter)


def test_a_loaded_state_resumes(state: Path) -> None:
    found = load_prompt(state)
    assert isinstance(found, TrainingState)
    encoder: nn.Module = PromptEncoder(CONFIG)
    found.restore(encoder, torch.optim.AdamW(encoder.parameters()))
    assert all(torch.equal(t, found.encoder[n]) for n, t in encoder.state_dict().items())
