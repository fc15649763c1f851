from typing import Any

import pytest
import torch
from torch import Tensor

from encoders.errors import PackingError
from encoders.packed import packed_attention
from encoders.packed.attention_layout import AttentionLayout, Segment
from encoders.packed.packing import PackedRow, pack
from encoders.packed.scoring import answer_log_probs
from tests.encoders.conftest import make_model, packed, plain_log_probs

HEAD = Segment(0, 5)
SECOND_SLIDES = ["full_attention", "sliding_attention"]
SEGMENTS = (HEAD, Segment(5, 8, HEAD), Segment(8, 9, HEAD), Segment(9, 13))


def states(num_heads: int, seed: int) -> Tensor:
    """Random states [1, heads, N, d]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, num_heads, 13, 4, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("num_key_heads", [1, 2, 4])
@pytest.mark.parametrize("scaling", [None, 0.3])
@pytest.mark.parametrize("long_bucket", [0, packed_attention.LONG_BUCKET])
def test_each_position_gets_what_a_plain_loop_gives(
    num_key_heads: int, scaling: float | None, long_bucket: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed_attention, "LONG_BUCKET", long_bucket)
    query, key, value = states(4, 0), states(num_key_heads, 1), states(num_key_heads, 2)
    output, weights = packed_attention.packed_attention(
        torch.nn.Identity(),
        query,
        key,
        value,
        None,
        scaling,
        packed_layout=AttentionLayout.of(SEGMENTS),
    )
    assert weights is None
    assert output.shape == (1, 13, 4, 4)
    for segment in SEGMENTS:
        for position in range(segment.start, segment.stop):
            before = [] if segment.parent is None else range(segment.parent.stop)
            seen = [*before, *range(segment.start, position + 1)]
            for head in range(4):
                group = head // (4 // num_key_heads)
                scores = key[0, group, seen] @ query[0, head, position]
                weight = (scores * (scaling or 4**-0.5)).softmax(0)
                expected = weight @ value[0, group, seen]
                assert torch.allclose(output[0, position, head], expected, atol=1e-12)


def test_a_base_that_loses_the_layout_is_refused() -> None:
    with pytest.raises(PackingError, match="does not hand the packed layout on"):
        packed_attention.packed_attention(
            torch.nn.Identity(), states(1, 0), states(1, 1), states(1, 2), None
        )


@pytest.mark.parametrize(
    ("name", "reason"), [("gemma2", "caps its attention scores"), ("gpt_oss", "attention sinks")]
)
def test_a_base_that_attends_in_another_way_is_refused(name: str, reason: str) -> None:
    model = packed(make_model(name))
    with pytest.raises(PackingError, match=reason):
        model.logits(pack([PackedRow(None, (1, 2, 3))], {}), {})


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("mistral", {}),
        ("qwen3", {"use_sliding_window": True, "layer_types": SECOND_SLIDES}),
    ],
)
def test_rows_longer_than_the_sliding_window_equal_plain_runs(
    name: str, changes: dict[str, Any]
) -> None:
    model = make_model(name, torch.float64, sliding_window=4, **changes)
    head = tuple(range(10, 17))
    rows = [
        PackedRow(None, (*head, 20, 21), ((1, 2, 3), (4, 5))),
        PackedRow(None, (*head, 22), ((6, 7),)),
        PackedRow(None, (30, 31), ((8,),)),
    ]
    expected = plain_log_probs(model, rows, {}, "sdpa")
    batch = pack(rows, {})
    scores = answer_log_probs(packed(model).logits(batch, {}), batch)
    assert float((scores - expected).detach().abs().max()) < 1e-6


@pytest.mark.parametrize("num_threads", [1, 2])
def test_a_lone_segment_of_one_key_head_has_the_bits_it_has_among_others(num_threads: int) -> None:
    """Matrix kernels on two threads treat a batch of one in another way."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, heads, 69, 64, generator=generator) for heads in (3, 1, 1))

    def first(num_rows: int) -> list[Tensor]:
        leaves = [
            each[:, :, : 23 * num_rows].clone().requires_grad_() for each in (query, key, value)
        ]
        heads = [Segment(23 * row, 23 * row + 20) for row in range(num_rows)]
        tails = [Segment(head.stop, head.stop + 3, head) for head in heads]
        output, _ = packed_attention.packed_attention(
            torch.nn.Identity(), *leaves, None, packed_layout=AttentionLayout.of(heads + tails)
        )
        output.sin().sum().backward()
        grads = [leaf.grad[:, :, :23] for leaf in leaves if leaf.grad is not None]
        return [output[:, :23].detach(), *grads]

    torch.set_num_threads(num_threads)
    try:
        alone, among = first(1), first(3)
    finally:
        torch.set_num_threads(1)
    assert len(alone) == 4
    assert all(torch.equal(one, other) for one, other in zip(alone, among, strict=True))
