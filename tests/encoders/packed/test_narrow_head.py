"""The head on a few tokens alone, against the same logits of a whole head."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from encoders.packed.narrow_head import on_tokens_only
from encoders.packed.packed_model import PackedModel
from encoders.packed.packing import PackedRow, pack
from encoders.packed.padded_model import PaddedModel
from tests.encoders.conftest import ARCHITECTURES, packed, random_tokens

LENGTHS = {"one": 4, "other": 3}
ROWS = (
    PackedRow("one", (-1, -2, -3, -4, 5, 6, 7), ((8,), (9,), (10,))),
    PackedRow("other", (11, 12, -1, -2, -3, 13), ((9,), (96,), (0,))),
    PackedRow("one", (-1, -2, -3, -4, 5, 6, 8), ((8,),)),
    PackedRow("one", (-1, -2, -3, -4, 5), ((8, 20), (9,), (30, 31, 32))),
)

Models = Callable[..., Any]


def widths(head: nn.Module, run: Callable[[], Tensor]) -> tuple[Tensor, list[int]]:
    """What `run` gives, and of how many tokens the head gave logits each time."""
    seen: list[int] = []
    hook = head.register_forward_hook(lambda m, args, output: seen.append(output.shape[-1]))
    try:
        return run(), seen
    finally:
        hook.remove()


def check(model: PackedModel, num_tokens: int) -> None:
    """`label_logits` must equal the labels' of `logits`, by a head of `num_tokens`."""
    tokens, batch = random_tokens(LENGTHS), pack(ROWS, LENGTHS)
    expected = model.logits(batch, tokens)[batch.label_kept, batch.label_ids]
    head = model.model.get_output_embeddings()
    found, seen = widths(head, lambda: model.label_logits(batch, tokens))
    assert seen == [num_tokens]
    assert torch.allclose(found, expected, rtol=0, atol=1e-5 * float(expected.detach().abs().max()))
    assert torch.equal(model.logits(batch, tokens)[batch.label_kept, batch.label_ids], expected)


@pytest.mark.parametrize(
    "name", [name for name in ARCHITECTURES if name not in ("gemma2", "gpt_oss")]
)
def test_labels_logits_are_those_of_the_whole_head(models: Models, name: str) -> None:
    check(packed(models(name)), len({label for row in ROWS for a in row.answers for label in a}))


@pytest.mark.parametrize("name", ["llama", "gemma2"])  # gemma2 caps its logits behind the head
def test_a_padded_base_has_a_narrow_head_as_well(models: Models, name: str) -> None:
    check(PaddedModel(models(name)), len({t for row in ROWS for a in row.answers for t in a}))


def test_a_head_of_another_kind_is_run_whole() -> None:
    class Scaled(nn.Linear):
        def forward(self, states: Tensor) -> Tensor:
            return super().forward(states) * 2

    for head in (Scaled(4, 10), nn.Sequential(nn.Linear(4, 10)), None):
        with on_tokens_only(head, torch.tensor([3, 1])) as is_narrow:
            assert not is_narrow
            assert head is None or head(torch.ones(1, 4)).shape == (1, 10)


def test_a_head_that_deepspeed_holds_in_parts_is_run_whole() -> None:
    head = nn.Linear(4, 10)
    head.weight.ds_id = 0  # type: ignore[attr-defined]
    with on_tokens_only(head, torch.tensor([3, 1])) as is_narrow:
        assert not is_narrow
        assert head(torch.ones(1, 4)).shape == (1, 10)


def test_a_wrapped_head_stays_wrapped() -> None:
    head = nn.Linear(4, 10)
    head.forward = lambda states: states  # type: ignore[method-assign]
    with on_tokens_only(head, torch.tensor([3, 1])) as is_narrow:
        assert not is_narrow
    assert head(torch.ones(1, 4)).shape == (1, 4)


def test_a_head_keeps_its_bias_and_is_whole_again_after_an_error() -> None:
    head, states = nn.Linear(4, 10), torch.randn(3, 4)
    expected, tokens = head(states), torch.tensor([3, 1])
    with pytest.raises(RuntimeError, match="meanwhile"), on_tokens_only(head, tokens) as is_narrow:
        assert is_narrow
        assert torch.allclose(head(states), expected[:, [3, 1]])
        raise RuntimeError("meanwhile")
    assert torch.equal(head(states), expected)


def test_a_base_that_changes_logits_by_token_is_run_whole(models: Models) -> None:
    base = models("llama")
    model = packed(base)
    contexts = [(1, 2, 3, 4), (5, 6)]
    plain = [model.plain_logits(context) for context in contexts]
    model.check_exact(contexts, plain)
    batch = pack(ROWS, LENGTHS)
    assert widths(base.lm_head, lambda: model.label_logits(batch, random_tokens(LENGTHS)))[1] != [
        97
    ]

    forward = base.forward

    def with_bias(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        output.logits = output.logits + F.one_hot(torch.tensor(48), output.logits.shape[-1]) * 9
        return output

    base.forward = with_bias
    try:
        model.check_exact(contexts, [model.plain_logits(context) for context in contexts])
        check(model, 97)
    finally:
        base.forward = forward
