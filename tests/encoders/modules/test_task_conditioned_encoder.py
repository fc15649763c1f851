import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from encoders.errors import ConfigError, EncoderError
from encoders.modules.task_conditioned_encoder import (
    TaskConditionedEncoder,
    TaskConditionedEncoderConfig,
)

SIZES = {"num_virtual_tokens": 5, "token_dim": 4, "hidden_size": 6}
KINDS = ("MLP", "LSTM")


def named(length: int, seed: int = 0) -> Tensor:
    """The embeddings of a task's name."""
    return torch.randn(length, 4, generator=torch.Generator().manual_seed(seed))


def encoder_of(kind: str = "MLP", seed: int = 0, **fields: Any) -> TaskConditionedEncoder:
    torch.manual_seed(seed)
    config = TaskConditionedEncoderConfig(**{**SIZES, "encoder_type": kind, **fields})
    return TaskConditionedEncoder(config)


def with_tasks(kind: str = "MLP", **fields: Any) -> TaskConditionedEncoder:
    encoder = encoder_of(kind, **fields)
    encoder.add_task("old", named(2, seed=1))
    encoder.add_task("new", named(3, seed=2))
    return encoder


def train(encoder: TaskConditionedEncoder, task: str, steps: int = 3) -> None:
    """Steps that move every weight of the shared network."""
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        encoder.virtual_tokens(task).square().sum().backward()
        optimizer.step()


@given(st.sampled_from(KINDS), st.integers(1, 9), st.integers(2, 4))
@settings(max_examples=25, deadline=None)
def test_a_name_takes_the_first_rows_of_the_table_as_in_nemo(
    kind: str, length: int, num_layers: int
) -> None:
    encoder = encoder_of(kind, num_layers=num_layers)
    name = named(length)
    # As NeMo 1.x has it: the table, its first min(T, V) rows overwritten.
    embeds = encoder.embedding.weight.detach().clone()
    replaced = min(length, 5)
    embeds[:replaced] = name[:replaced]
    hidden = embeds[None]
    if encoder.lstm_head is not None:
        hidden = encoder.lstm_head(hidden)[0]
    expected = encoder.mlp_head(hidden)[0]
    encoder.add_task("a", name)
    assert torch.equal(encoder.virtual_tokens("a"), expected)
    assert expected.shape == (5, 4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_of_names_gives_each_ones_virtual_tokens(kind: str) -> None:
    encoder = encoder_of(kind)
    batch = torch.stack([named(3, seed=1), named(3, seed=2)])
    tokens = encoder(batch)
    for name, expected in zip(batch, tokens, strict=True):
        torch.testing.assert_close(encoder(name[None])[0], expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_frozen_task_never_changes_and_gets_no_gradient(kind: str) -> None:
    encoder = with_tasks(kind)
    train(encoder, "old")
    with torch.no_grad():  # where a gradient is wanted, an LSTM rounds otherwise
        before = encoder.virtual_tokens("old")
    encoder.freeze_task("old")
    assert torch.equal(encoder.virtual_tokens("old"), before)
    train(encoder, "new")
    assert torch.equal(encoder.virtual_tokens("old"), before)
    assert not encoder.virtual_tokens("old").requires_grad
    network = encoder(named(2, seed=1)[None])[0]
    assert not torch.allclose(network, before), "the shared network itself has moved on"


@pytest.mark.parametrize("kind", KINDS)
def test_a_frozen_task_in_the_loss_leaves_the_others_gradient_alone(kind: str) -> None:
    encoder = with_tasks(kind)
    encoder.freeze_task("old")
    encoder.virtual_tokens("new").sum().backward()
    expected = {name: p.grad.clone() for name, p in encoder.named_parameters()}  # type: ignore[union-attr]
    encoder.zero_grad()
    (encoder.virtual_tokens("new").sum() + encoder.virtual_tokens("old").sum()).backward()
    for name, parameter in encoder.named_parameters():
        assert torch.equal(parameter.grad, expected[name])  # type: ignore[arg-type]


def test_a_snapshot_has_no_dropout_and_leaves_the_modes_alone() -> None:
    encoder = with_tasks("LSTM", dropout=0.9).train()
    encoder.mlp_head.eval()
    encoder.freeze_task("old")
    assert encoder.training
    assert not encoder.mlp_head.training
    live = copy.deepcopy(encoder).eval()
    # Kernels may round otherwise where the copy's weights lie otherwise in memory.
    alive = live(named(2, seed=1)[None])[0]
    torch.testing.assert_close(encoder.virtual_tokens("old"), alive, atol=1e-6, rtol=0.0)
    drawn = [encoder.virtual_tokens("new") for _ in range(2)]
    assert not torch.equal(*drawn), "dropout is on for a task that still trains"


def test_a_snapshot_stands_where_it_is_frozen_again_or_written_to() -> None:
    encoder = with_tasks()
    encoder.freeze_task("old")
    before = encoder.virtual_tokens("old")
    train(encoder, "new")
    encoder.freeze_task("old")
    assert torch.equal(encoder.virtual_tokens("old"), before)
    encoder.virtual_tokens("old").zero_()
    assert torch.equal(encoder.virtual_tokens("old"), before)


@pytest.mark.parametrize("kind", KINDS)
def test_state_dict_brings_back_tasks_and_snapshots(tmp_path: Path, kind: str) -> None:
    encoder = with_tasks(kind)
    encoder.add_task("a.b", named(1))
    encoder.freeze_task("old")
    encoder.freeze_task("a.b")
    train(encoder, "new")
    save_file(encoder.state_dict(), tmp_path / "encoder.safetensors")
    other = encoder_of(kind, seed=9)
    other.add_task("forgotten", named(2))
    other.load_state_dict(load_file(tmp_path / "encoder.safetensors"))
    assert sorted(other.tasks) == ["a.b", "new", "old"]
    assert sorted(other.frozen) == ["a.b", "old"]
    for task in other.tasks:
        assert torch.equal(other.virtual_tokens(task), encoder.virtual_tokens(task))
    train(other, "new")
    assert torch.equal(other.virtual_tokens("old"), encoder.virtual_tokens("old"))


def test_a_state_dict_with_a_stray_key_is_refused() -> None:
    state = with_tasks().state_dict()
    with pytest.raises(RuntimeError, match="Unexpected key"):
        with_tasks().load_state_dict({**state, "task.old": torch.ones(1, 4)})


@pytest.mark.parametrize("name", ["a.b", "../x", "embedding.weight", "tasks", "日本", "a b"])
def test_names_that_look_like_paths_are_only_names(name: str) -> None:
    encoder = with_tasks()
    parameters = list(encoder.state_dict())[:5]
    encoder.add_task(name, named(2))
    encoder.freeze_task(name)
    assert encoder.virtual_tokens(name).shape == (5, 4)
    assert list(encoder.state_dict())[:5] == parameters
    assert torch.equal(encoder.state_dict()[f"tasks.{name}"], named(2))


@pytest.mark.parametrize("name", ["", "\n", "\ud800", None])
def test_names_that_are_no_text_are_refused(name: Any) -> None:
    with pytest.raises(EncoderError, match="must be printable text"):
        encoder_of().add_task(name, named(2))


def test_a_name_is_taken_once_and_an_unknown_one_is_an_error() -> None:
    encoder = with_tasks()
    with pytest.raises(EncoderError, match="there is a task 'old' already"):
        encoder.add_task("old", named(2))
    for use in (encoder.virtual_tokens, encoder.freeze_task):
        with pytest.raises(EncoderError, match=r"no task 'x'; there are \['new', 'old'\]"):
            use("x")


@pytest.mark.parametrize("shape", [(3,), (0, 4), (3, 5), (1, 3, 4)])
def test_embeddings_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(EncoderError, match=r"expected \(at least 1, 4\)"):
        encoder_of().add_task("a", torch.ones(shape))


@pytest.mark.parametrize(
    "fields",
    [
        {"encoder_type": "GRU"},
        {"encoder_type": None},
        {"num_layers": 1},
        {"num_layers": 0, "encoder_type": "LSTM"},
        {"dropout": -0.1},
        {"dropout": float("nan")},
        {"dropout": "0"},
        {"init_std": float("nan")},
        {"token_dim": 0},
    ],
    ids=str,
)
def test_a_config_nothing_can_be_built_from_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        TaskConditionedEncoderConfig(**{**SIZES, **fields})


def test_an_lstm_may_have_one_layer() -> None:
    encoder = encoder_of("lstm", num_layers=1)
    assert encoder.lstm_head is not None
    assert encoder.lstm_head.num_layers == 1
