import errno
import hashlib
import json
import os
import random
import resource
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from encoders.config import PromptEncoderConfig
from encoders.errors import WeightsError
from encoders.formats.training_state import (
    MANIFEST_NAME,
    load_training_state,
    save_training_state,
)
from tests.encoders.tiny_training import OPTIMIZERS, SCHEDULERS, TinyTraining

ROOT = Path(__file__).parents[3]


def assert_equal(found: Any, expected: Any) -> None:
    """Equal state dicts, tensors and floats to the last bit, tuples as tuples."""
    assert type(found) is type(expected)
    if isinstance(expected, Tensor):
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for key in expected:
            assert_equal(found[key], expected[key])
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for a, b in zip(found, expected, strict=True):
            assert_equal(a, b)
    else:
        assert found == expected


def assert_resumes(folder: Path, *kinds: Any, before: int = 4, after: int = 5) -> None:
    torch.manual_seed(1)
    straight = TinyTraining(*kinds)
    straight.run(before)
    straight.save(folder)
    straight.run(after)
    end = torch.get_rng_state()

    torch.manual_seed(999)
    torch.rand(13)
    resumed = TinyTraining(*kinds)
    resumed.resume(folder)
    resumed.run(after)
    assert [x.hex() for x in resumed.losses] == [x.hex() for x in straight.losses[before:]]
    assert resumed.step == straight.step == before + after
    assert_equal(dict(resumed.encoder.state_dict()), dict(straight.encoder.state_dict()))
    assert_equal(resumed.optimizer.state_dict(), straight.optimizer.state_dict())
    if straight.scheduler is not None and resumed.scheduler is not None:
        ours, expected = resumed.scheduler.state_dict(), straight.scheduler.state_dict()
        assert ours.keys() == expected.keys()
        assert str(ours) == str(expected)
    assert torch.equal(torch.get_rng_state(), end)
    assert torch.equal(resumed.data.get_state(), straight.data.get_state())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("encoder", ["MLP", "LSTM"])
def test_a_training_resumes_bit_for_bit(tmp_path: Path, encoder: str, optimizer: str) -> None:
    assert_resumes(tmp_path, encoder, optimizer, None if optimizer == "LBFGS" else "cosine")


@pytest.mark.parametrize("scheduler", [*SCHEDULERS, None])
def test_a_training_resumes_bit_for_bit_under_any_scheduler(
    tmp_path: Path, scheduler: str | None
) -> None:
    assert_resumes(tmp_path, "LSTM", "AdamW", scheduler)


@given(st.integers(0, 6), st.integers(1, 6))
@settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_training_resumes_bit_for_bit_from_any_step(
    tmp_path: Path, before: int, after: int
) -> None:
    assert_resumes(tmp_path, before=before, after=after)


def test_a_training_resumes_bit_for_bit_in_another_process(tmp_path: Path) -> None:
    torch.manual_seed(1)
    straight = TinyTraining("LSTM", "AdamW", "warm-up")
    straight.run(4)
    straight.save(tmp_path)
    straight.run(5)
    arguments = [str(tmp_path), "5", "LSTM", "AdamW", "warm-up"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.encoders.tiny_training", *arguments],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == [straight.digest(), *(x.hex() for x in straight.losses[4:])]


def test_a_loaded_state_holds_what_was_saved_and_can_be_restored_twice(tmp_path: Path) -> None:
    training = TinyTraining()
    training.run(3)
    training.save(tmp_path)
    state = load_training_state(tmp_path)
    assert state.step == 3
    assert state.data_position == {"order": training.order}
    assert state.config is not None
    assert PromptEncoderConfig.from_dict(state.config) == training.config
    assert_equal(state.encoder, dict(training.encoder.state_dict()))
    assert_equal(state.optimizer, training.optimizer.state_dict())
    assert isinstance(state.optimizer["param_groups"][0]["betas"], tuple)
    for _ in range(2):
        training.resume(tmp_path)
        state.restore(
            training.encoder, training.optimizer, training.scheduler, {"data": training.data}
        )
        training.run(2)
        assert_equal(state.optimizer, load_training_state(tmp_path).optimizer)


def test_a_folder_holds_one_state_and_other_files_are_left_alone(tmp_path: Path) -> None:
    training = TinyTraining()
    (tmp_path / "tree-mine.json").write_text("{}")
    (tmp_path / ".notes.part").write_text("")
    for _ in range(3):
        training.run(1)
        training.save(tmp_path)
    names = sorted(path.name.split("-")[0] for path in tmp_path.iterdir())
    assert names == [".notes.part", "tensors", "training_state.json", "tree", "tree"]


def test_saving_the_same_state_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    training = TinyTraining()
    training.run(1)
    contents = []
    for _ in range(2):
        training.save(tmp_path)
        contents.append({path.name: path.read_bytes() for path in tmp_path.iterdir()})
    assert contents[0] == contents[1]


def test_no_file_is_a_pickle(tmp_path: Path) -> None:
    TinyTraining().save(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}
    for path in tmp_path.glob("*.json"):
        json.loads(path.read_text())


# What does not fit


def restore(folder: Path, training: TinyTraining, **changes: Any) -> None:
    arguments = {
        "encoder": training.encoder,
        "optimizer": training.optimizer,
        "scheduler": training.scheduler,
        "generators": {"data": training.data},
    }
    load_training_state(folder).restore(**{**arguments, **changes})


def test_a_state_is_not_restored_into_another_training(tmp_path: Path) -> None:
    training = TinyTraining()
    training.run(1)
    training.save(tmp_path)
    with pytest.raises(WeightsError, match="(?s)does not fit this training: .*Missing key"):
        restore(tmp_path, training, encoder=nn.Linear(2, 2))
    with pytest.raises(WeightsError, match="does not fit this training: .*parameter group"):
        restore(tmp_path, training, optimizer=torch.optim.SGD([nn.Parameter(torch.ones(1))]))
    with pytest.raises(WeightsError, match="do not both have an LR scheduler"):
        restore(tmp_path, training, scheduler=None)
    with pytest.raises(WeightsError, match=r"has the generators \['data'\], not \['other'\]"):
        restore(tmp_path, training, generators={"other": torch.Generator()})


@pytest.mark.parametrize(
    "rng",
    [
        {},
        {"cpu": torch.zeros(5, dtype=torch.uint8)},
        {"cpu": torch.zeros(5056, dtype=torch.uint8)},
        {"cpu": torch.zeros(5056)},
        {"cuda:7": torch.zeros(16, dtype=torch.uint8)},
    ],
)
def test_random_states_that_do_not_fit_this_machine_are_refused(
    tmp_path: Path, rng: dict[str, Tensor]
) -> None:
    training = TinyTraining()
    training.save(tmp_path)
    state = replace(load_training_state(tmp_path), rng=rng)
    before = torch.get_rng_state()
    with pytest.raises(WeightsError, match="does not fit this training"):
        state.restore(
            training.encoder, training.optimizer, training.scheduler, {"data": training.data}
        )
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("step", [-1, 1.0, True, None, "1"])
def test_a_step_that_is_no_whole_number_is_refused(tmp_path: Path, step: Any) -> None:
    training = TinyTraining()
    training.step = step
    with pytest.raises(WeightsError, match="step is .*; it must be a whole number from 0 up"):
        training.save(tmp_path)


def spoil_weights(training: TinyTraining) -> None:
    with torch.no_grad():
        training.encoder.embedding.weight[0, 0] = torch.nan


def spoil_optimizer(training: TinyTraining) -> None:
    training.run(1)
    next(iter(training.optimizer.state.values()))["exp_avg"].fill_(torch.inf)


def spoil_position(training: TinyTraining) -> None:
    training.order = [object()]  # type: ignore[list-item]


def spoil_size(training: TinyTraining) -> None:
    training.order = ["x" * (1 << 24)]  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (spoil_weights, "not saved: 'encoder/embedding.weight' holds NaN or infinity"),
        (spoil_optimizer, "not saved: 'optimizer/state/0/exp_avg' holds NaN or infinity"),
        (spoil_position, "data_position/order/0 is a object"),
        (spoil_size, "not saved: .*put long lists of data_position into a tensor"),
    ],
)
def test_what_cannot_be_kept_leaves_the_previous_state_alone(
    tmp_path: Path, spoil: Callable[[TinyTraining], None], reason: str
) -> None:
    training = TinyTraining()
    training.save(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    spoil(training)
    with pytest.raises(WeightsError, match=reason):
        training.save(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


# Damage


def saved(folder: Path) -> dict[str, Path]:
    training = TinyTraining()
    training.run(1)
    training.save(folder)
    return {path.name.split("-")[0]: path for path in folder.iterdir()}


@pytest.mark.parametrize("kind", ["tree", "tensors"])
@given(at=st.integers(0, 10**6), flip=st.integers(1, 255))
@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_changed_byte_is_refused_with_both_digests(
    tmp_path: Path, kind: str, at: int, flip: int
) -> None:
    path = saved(tmp_path)[kind]
    data = bytearray(path.read_bytes())
    data[at % len(data)] ^= flip
    path.write_bytes(data)
    expected = path.stem.removeprefix(f"{kind}-")
    with pytest.raises(
        WeightsError, match=f"^{path}: its sha256 is [0-9a-f]{{64}}, expected {expected}: the file"
    ):
        load_training_state(tmp_path)


@given(at=st.integers(0, 10**6), flip=st.integers(1, 255))
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_changed_byte_of_the_manifest_never_gives_another_state(
    tmp_path: Path, at: int, flip: int
) -> None:
    path = saved(tmp_path)[MANIFEST_NAME]
    before = load_training_state(tmp_path)
    data = bytearray(path.read_bytes())
    data[at % len(data)] ^= flip
    path.write_bytes(data)
    try:
        after = load_training_state(tmp_path)
    except WeightsError:
        return
    assert_equal(after.encoder, before.encoder)  # white space took the place of white space


@pytest.mark.parametrize("kind", ["tree", "tensors"])
def test_a_torn_state_is_refused_with_the_file(tmp_path: Path, kind: str) -> None:
    path = saved(tmp_path)[kind]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(WeightsError, match=f"^{path}: its sha256 is"):
        load_training_state(tmp_path)
    path.unlink()
    with pytest.raises(WeightsError, match=f"^{path}: cannot be opened: .*No such file"):
        load_training_state(tmp_path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"format": "tutti-training-state-2"}, "its format is 'tutti-training-state-2'; this"),
        ({"tree_sha256": "../../etc/passwd"}, "not the manifest"),
        ({"tree_sha256": "A" * 64}, "not the manifest"),
        ({"tree_sha256": "0" * 64}, "cannot be opened"),
        ({"tensors_sha256": None}, "not the manifest"),
        ({"more": 1}, "not the manifest"),
    ],
)
def test_a_manifest_that_was_never_written_is_refused(
    tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    path = saved(tmp_path)[MANIFEST_NAME]
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(WeightsError, match=reason):
        load_training_state(tmp_path)


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"[]", b"null", b"\x80\x04.", b"[" * 4000, b" " * 5000]
)
def test_a_manifest_that_is_none_is_refused(tmp_path: Path, data: bytes) -> None:
    saved(tmp_path)[MANIFEST_NAME].write_bytes(data)
    with pytest.raises(WeightsError, match=f"^{tmp_path / MANIFEST_NAME}: "):
        load_training_state(tmp_path)


def forge(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the tree and give it the digest that it then has, as somebody hostile would."""
    files = saved(folder)
    tree = json.loads(files["tree"].read_text())
    data = json.dumps(change(tree) or tree).encode()
    digest = hashlib.sha256(data).hexdigest()
    (folder / f"tree-{digest}.json").write_bytes(data)
    manifest = json.loads(files[MANIFEST_NAME].read_text())
    files[MANIFEST_NAME].write_text(json.dumps(manifest | {"tree_sha256": digest}))


@pytest.mark.parametrize(
    "change",
    [
        lambda tree: [1],
        lambda tree: tree.pop("rng") and None,
        lambda tree: tree.update(more=1),
        lambda tree: tree.update(step=-1),
        lambda tree: tree.update(step=1.5),
        lambda tree: tree.update(step=True),
        lambda tree: tree.update(encoder=None),
        lambda tree: tree.update(optimizer=[]),
        lambda tree: tree.update(scheduler="x"),
        lambda tree: tree.update(config=1),
        lambda tree: tree.update(generators={"dict": [["data", 1]]}),
        lambda tree: tree.update(encoder={"dict": [["a", {"tensor": "none of these"}]]}),
        lambda tree: tree.update(encoder={"dict": []}),
        lambda tree: tree.update(data_position={"pickle": "gASVAAAA"}),
    ],
)
def test_a_forged_state_is_refused(tmp_path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    forge(tmp_path, change)
    with pytest.raises(WeightsError, match="tree-[0-9a-f]{64}.json: not a training state: "):
        load_training_state(tmp_path)


def test_a_folder_without_a_state_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=f"{MANIFEST_NAME}: cannot be opened"):
        load_training_state(tmp_path)
    with pytest.raises(WeightsError, match="cannot be opened"):
        load_training_state(tmp_path / "nowhere")


# Sudden death. A child that was forked from this process dies as by kill -9: nothing is cleaned up.


def in_child(work: Callable[[], None]) -> int:
    """Run `work` in a forked child; its wait status."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            os._exit(70)
        os._exit(0)
    return os.waitpid(child, 0)[1]


def die_at(call: int) -> None:
    """From here on, the process is killed in place of its `call`-th write, flush or rename."""
    calls = 0

    def wrapped(real: Callable[..., Any]) -> Callable[..., Any]:
        def function(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **options)

        return function

    os.fsync, os.replace, os.unlink, os.open = map(
        wrapped, (os.fsync, os.replace, os.unlink, os.open)
    )
    Path.replace, Path.unlink, Path.open = map(  # type: ignore[method-assign,assignment]
        wrapped, (Path.replace, Path.unlink, Path.open)
    )


def test_a_kill_at_any_point_of_a_save_leaves_one_whole_state(tmp_path: Path) -> None:
    training = TinyTraining()
    training.run(1)
    training.save(tmp_path)
    training.run(1)

    def save_and_die(call: int) -> None:
        die_at(call)
        training.save(tmp_path)

    steps = []
    for call in range(1, 100):
        status = in_child(lambda call=call: save_and_die(call))  # type: ignore[misc]
        steps.append(load_training_state(tmp_path).step)
        if status == 0:
            break
        assert os.WTERMSIG(status) == signal.SIGKILL
    assert len(steps) > 12
    assert steps == sorted(steps)
    assert {steps[0], steps[-1]} == {1, 2}
    assert len([*tmp_path.iterdir()]) == 3


def test_a_full_disk_leaves_the_previous_state_whole(tmp_path: Path) -> None:
    training = TinyTraining()
    training.run(1)
    training.save(tmp_path)
    training.run(1)
    largest = max(path.stat().st_size for path in tmp_path.iterdir())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for size in (0, 100, largest // 2, largest - 1):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
        try:
            with pytest.raises(OSError, match="File too large") as raised:
                training.save(tmp_path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert raised.value.errno == errno.EFBIG
        assert load_training_state(tmp_path).step == 1
    training.save(tmp_path)
    assert load_training_state(tmp_path).step == 2
    assert len([*tmp_path.iterdir()]) == 3


@pytest.mark.faults
def test_kill_9_at_random_moments_never_loses_a_committed_state(tmp_path: Path) -> None:
    training = TinyTraining()
    training.save(tmp_path)
    training.save(tmp_path / "start")
    chance = random.Random(0)
    committed = 0
    for _ in range(60):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            training.resume(tmp_path)
            while True:
                training.run(1)
                training.save(tmp_path)
                os.write(writer, training.step.to_bytes(4, "little"))
        os.close(writer)
        for _ in range(chance.randrange(1, 4)):
            committed = int.from_bytes(os.read(reader, 4), "little")
        select.select([], [], [], chance.random() * 0.01)  # anywhere within the next save
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        while data := os.read(reader, 4):
            committed = int.from_bytes(data, "little")
        os.close(reader)
        assert load_training_state(tmp_path).step in (committed, committed + 1)
    straight = TinyTraining()
    resumed = TinyTraining()
    resumed.resume(tmp_path)
    assert resumed.step >= 60
    straight.resume(tmp_path / "start")
    straight.run(resumed.step)
    assert straight.digest() == resumed.digest()


def test_a_state_of_any_module_is_kept(tmp_path: Path) -> None:
    """A prompt with its head, say."""
    module = nn.ModuleDict({"prompt": nn.Embedding(2, 3), "head": nn.Linear(3, 2)})
    optimizer = torch.optim.AdamW(module.parameters())
    save_training_state(tmp_path, encoder=module, optimizer=optimizer, step=0)
    other = nn.ModuleDict({"prompt": nn.Embedding(2, 3), "head": nn.Linear(3, 2)})
    load_training_state(tmp_path).restore(other, torch.optim.AdamW(other.parameters()))
    assert_equal(dict(other.state_dict()), dict(module.state_dict()))
