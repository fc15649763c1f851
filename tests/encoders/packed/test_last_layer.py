"""The last layer on wanted rows alone, against the same model with nothing left out."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from encoders.errors import PackingError
from encoders.packed import packed_model
from encoders.packed.last_layer import on_rows_only, row_wise_modules
from encoders.packed.packed_model import PackedModel
from encoders.packed.packing import MIN_POSITIONS, PackedRow, pack
from tests.encoders.conftest import packed, random_tokens
from tests.tiny import keeps_row_bits

EXACT = ("llama", "qwen3", "mistral", "gpt2", "gpt_neox")
LENGTHS = {"p": 4, "q": 3}
ROWS = (
    PackedRow("p", (*(-i - 1 for i in range(4)), 5, 6, 7), ((8, 9, 10),)),
    PackedRow("q", (11, 12, *(-i - 1 for i in range(3)), 13), ((2, 3), (4,), (2, 5, 6))),
    PackedRow(None, tuple(range(20, 50)), ((30,),)),
)

Models = Callable[..., Any]


def run(model: PackedModel) -> tuple[Tensor, ...]:
    """Kept logits of ROWS, and gradients of a sum that tells labels apart."""
    tokens = random_tokens(LENGTHS)
    batch = pack(ROWS, LENGTHS)
    logits = model.logits(batch, tokens)
    labels = logits.log_softmax(-1)[batch.label_kept, batch.label_ids]
    weights = torch.arange(1, len(labels) + 1)
    return logits.detach(), *torch.autograd.grad((labels * weights).sum(), list(tokens.values()))


@pytest.mark.parametrize("name", EXACT)
def test_leaving_rows_out_changes_neither_logits_nor_gradients(
    models: Models, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = packed(models(name))
    found = run(model)
    monkeypatch.setattr(packed_model, "row_wise_modules", lambda model: [])
    for one, other in zip(found, run(model), strict=True):
        if keeps_row_bits():
            assert torch.equal(one, other)
        else:
            assert float((one - other).abs().max()) < 1e-6


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llama", ["q_proj", "o_proj", "mlp"]),
        ("qwen3", ["q_proj", "o_proj", "mlp"]),
        ("mistral", ["q_proj", "o_proj", "mlp"]),
        ("gpt2", ["c_proj", "mlp"]),
        ("gpt_neox", ["dense", "mlp"]),
    ],
)
def test_the_modules_are_those_of_the_last_layer(
    models: Models, name: str, expected: list[str]
) -> None:
    model = models(name)
    names = {module: path for path, module in model.named_modules()}
    paths = [names[module] for module in row_wise_modules(model)]
    assert [path.rpartition(".")[2] for path in paths] == expected
    assert all(".1." in path for path in paths), "the second of two layers"


@contextmanager
def rows_seen_inside_mlps(model: Any) -> Iterator[list[int]]:
    """How many rows the first module within each layer's MLP is given, call by call."""
    seen: list[int] = []
    mlps = [module for path, module in model.named_modules() if path.endswith(".mlp")]
    with ExitStack() as hooks:
        for mlp in mlps:
            inside = next(child for child in mlp.children() if hasattr(child, "weight"))
            hook = inside.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
            hooks.callback(hook.remove)
        yield seen


@pytest.mark.parametrize("name", EXACT)
def test_only_the_last_layer_sees_fewer_rows_and_only_where_logits_are_wanted(
    models: Models, name: str
) -> None:
    model, batch, text = packed(models(name)), pack(ROWS, LENGTHS), pack(ROWS[2:], {})
    with rows_seen_inside_mlps(model.model) as seen:
        model.logits(batch, random_tokens(LENGTHS))
        model.states(text)
        model.plain_logits(ROWS[2].context)
    num_kept = max(MIN_POSITIONS, len(batch.kept))
    length = len(ROWS[2].context)
    assert batch.num_positions > 2 * num_kept
    assert seen == [batch.num_positions, num_kept, length, length, length, length]


def test_few_kept_rows_are_filled_up_with_other_rows() -> None:
    batch = pack(ROWS[2:], {})
    rows = [*batch.kept.tolist(), *batch.filler.tolist()]
    assert len(rows) == len(set(rows)) == MIN_POSITIONS
    assert set(rows) < set(range(batch.num_positions))
    assert not len(pack(ROWS[2:] * MIN_POSITIONS, {}).filler)


def test_a_module_that_returns_more_than_a_tensor_is_refused_and_unhooked() -> None:
    class Router(nn.Module):
        def forward(self, states: Tensor) -> tuple[Tensor, Tensor]:
            return states, states

    router, states = Router(), torch.zeros(1, 5, 2)
    rows = torch.tensor([3, 1])
    with (
        pytest.raises(PackingError, match="Router returns more than a tensor"),
        on_rows_only([router], rows, 5),
    ):
        router(states)
    assert router(states)[0] is states


def test_rows_left_out_are_zero_and_take_no_gradient() -> None:
    linear = nn.Linear(2, 3)
    states = torch.randn(1, 5, 2, requires_grad=True)
    with on_rows_only([linear], torch.tensor([3, 1]), 5):
        output = linear(states)
    assert torch.equal(output[0, [1, 3]], linear(states)[0, [1, 3]])
    assert output[0].abs().sum(-1).ne(0).tolist() == [False, True, False, True, False]
    output.sum().backward()
    assert states.grad is not None
    assert states.grad[0].abs().sum(-1).ne(0).tolist() == [False, True, False, True, False]


def test_an_unknown_layout_is_left_as_it_is() -> None:
    assert row_wise_modules(nn.Linear(2, 2)) == []
