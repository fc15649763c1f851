import pytest
import torch
from torch import Tensor

from encoders.errors import PackingError
from encoders.packed.attention_layout import AttentionLayout, Segment
from encoders.packed.packed_attention import packed_attention
from encoders.packed.packed_model import PackedModel
from encoders.packed.packing import PackedRow, pack
from tests.encoders.conftest import ARCHITECTURES, make_model, packed

HEAD = Segment(0, 5)
SEGMENTS = (HEAD, Segment(5, 8, HEAD), Segment(8, 9, HEAD), Segment(9, 13))


def states(num_heads: int, seed: int) -> Tensor:
    """Random states [1, heads, N, d]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, num_heads, 13, 4, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("num_key_heads", [1, 2, 4])
@pytest.mark.parametrize("scaling", [None, 0.3])
def test_each_position_gets_what_a_plain_loop_gives(
    num_key_heads: int, scaling: float | None
) -> None:
    query, key, value = states(4, 0), states(num_key_heads, 1), states(num_key_heads, 2)
    output, weights = packed_attention(
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
        packed_attention(torch.nn.Identity(), states(1, 0), states(1, 1), states(1, 2), None)


@pytest.mark.parametrize(
    ("name", "reason"), [("gemma2", "caps its attention scores"), ("gpt_oss", "attention sinks")]
)
def test_a_base_that_attends_in_another_way_is_refused(name: str, reason: str) -> None:
    model = packed(make_model(name))
    with pytest.raises(PackingError, match=reason):
        model.logits(pack([PackedRow(None, (1, 2, 3))], {}), {})


@pytest.fixture(scope="module")
def mistral() -> PackedModel:
    return packed(make_model("mistral"))


def test_a_row_longer_than_the_sliding_window_is_refused(mistral: PackedModel) -> None:
    window = ARCHITECTURES["mistral"][1]["sliding_window"]
    row = PackedRow(None, tuple(range(1, window + 1)), ((1,),))
    mistral.logits(pack([row], {}), {})
    longer = PackedRow(None, tuple(range(1, window + 1)), ((1, 2),))
    with pytest.raises(PackingError, match=f"{window + 1} positions, .* window of {window}"):
        mistral.logits(pack([longer], {}), {})
