"""Flex attention, uncompiled on the CPU, against the buckets: same segments, same states."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch.nn.attention import flex_attention as torch_flex

from encoders.packed import flex_attention
from encoders.packed.attention_layout import AttentionLayout, Segment
from encoders.packed.flex_attention import FlexLayout
from encoders.packed.packed_attention import LayerStates, packed_attention
from encoders.packed.packed_model import PackedModel
from encoders.packed.packing import PackedBatch, PackedRow, pack
from tests.encoders.conftest import make_model, packed, random_tokens

CPU = torch.device("cpu")
HEAD_DIM = 4
NUM_CACHED = 7
FIRST, SECOND = Segment(0, 4, is_cached=True), Segment(4, NUM_CACHED, is_cached=True)


@pytest.fixture(scope="module", autouse=True)
def differentiable_on_the_cpu() -> Iterator[None]:
    """Its reference code has a backward pass on the CPU too, behind a check of the device."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_flex, "_validate_device", lambda *states: None)
        patch.setattr(torch_flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
        yield


#: Each segment's length, and which of the segments before it (or text, or none) it continues.
forests = st.lists(st.tuples(st.integers(1, 6), st.integers(-3, 6)), min_size=1, max_size=7)


def segments_of(forest: list[tuple[int, int]]) -> list[Segment]:
    segments: list[Segment] = []
    roots = {-1: FIRST, -2: SECOND}
    for length, parent in forest:
        start = segments[-1].stop if segments else 0
        before = segments[parent] if 0 <= parent < len(segments) else roots.get(parent)
        segments.append(Segment(start, start + length, before))
    return [*segments, *both_texts(segments[-1].stop)]


def both_texts(start: int) -> list[Segment]:
    """A position behind each cached text: a batch names no text that it does not use."""
    return [Segment(start, start + 1, FIRST), Segment(start + 1, start + 2, SECOND)]


def attend(
    layout: AttentionLayout | FlexLayout, num_key_heads: int, num_positions: int, window: int | None
) -> tuple[Tensor, ...]:
    """The output, and gradients to query, key and value."""
    generator = torch.Generator().manual_seed(0)

    def states(num_heads: int, length: int) -> Tensor:
        shape = (1, num_heads, length, HEAD_DIM)
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    query, weight = states(4, num_positions), states(4, num_positions)
    key, value = states(num_key_heads, num_positions), states(num_key_heads, num_positions)
    cached = [states(num_key_heads, NUM_CACHED)[0].transpose(0, 1) for _ in range(2)]
    inputs = [each.requires_grad_() for each in (query, key, value)]
    module = torch.nn.Identity()
    module.layer_idx = 0  # type: ignore[assignment]
    output, _ = packed_attention(
        module,
        *inputs,
        None,
        0.3,
        packed_layout=layout,
        packed_cache=[LayerStates(*cached)],
        sliding_window=window,
    )
    assert output.shape == (1, num_positions, 4, HEAD_DIM)
    found = torch.autograd.grad((output * weight.transpose(1, 2)).sum(), inputs)
    return output.detach(), *found


@given(forests, st.sampled_from([1, 2, 4]), st.sampled_from([None, 1, 3, 100]))
@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
def test_it_equals_the_buckets_in_value_and_gradient(
    forest: list[tuple[int, int]], num_key_heads: int, window: int | None
) -> None:
    segments = segments_of(forest)
    num_positions = segments[-1].stop
    flex = FlexLayout.of(segments, CPU)
    assert flex.num_cached == NUM_CACHED
    found = attend(flex, num_key_heads, num_positions, window)
    buckets = AttentionLayout.of(segments)
    assert flex.max_length == buckets.max_length
    expected = attend(buckets, num_key_heads, num_positions, window)
    for one, other in zip(found, expected, strict=True):
        assert float((one - other).abs().max()) < 1e-12


@given(forests)
@settings(max_examples=30, deadline=None)
def test_spans_of_the_walk_say_who_continues_whom(forest: list[tuple[int, int]]) -> None:
    segments = segments_of(forest)
    layout = FlexLayout.of(segments, CPU)
    enter, leave = layout.enter[NUM_CACHED:], layout.leave[NUM_CACHED:]
    for segment in segments:
        inside = (enter[segment.start] <= enter) & (enter < leave[segment.start])
        expected = {
            position
            for other in segments
            if set(segment.keys()) <= set(other.keys())
            and segment.cached_keys() == other.cached_keys()
            for position in range(other.start, other.stop)
        }
        assert set(inside.nonzero()[:, 0].tolist()) == expected


def test_one_compilation_serves_all_lengths_texts_and_windows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counter = CompileCounter()
    compiled = torch.compile(torch_flex.flex_attention, dynamic=True, backend=counter)
    monkeypatch.setattr(flex_attention, "flex_attention", compiled)
    for size, text, window in ((300, 300, None), (650, 200, 4), (900, 0, 7)):
        parent = Segment(0, text, is_cached=True) if text else None
        layout = FlexLayout.of([Segment(0, size, parent)], CPU)
        query, new = torch.zeros(1, 4, size, 16), torch.zeros(1, 2, text + size, 16)
        layout.attend(query, new, new, None, window)
    assert counter.frame_count == 1


ROWS = (
    PackedRow("p", (-1, -2, -3, -4, 5, 6, 7), ((8, 9, 10),)),
    PackedRow("p", (-1, -2, -3, -4, 9), ((2, 3), (4,), (2, 5, 6))),
    PackedRow(None, (20, 21, 22), ((30,),)),
)


def scores(model: PackedModel, batch: PackedBatch) -> tuple[Tensor, Tensor]:
    tokens = random_tokens({"p": 4}, torch.float64)
    labels = model.logits(batch, tokens).log_softmax(-1)[batch.label_kept, batch.label_ids]
    return labels.detach(), torch.autograd.grad(labels.sum(), list(tokens.values()))[0]


@pytest.mark.parametrize("name", ["llama", "mistral"])
def test_a_model_gives_the_same_through_either_attention(name: str) -> None:
    changes = {"sliding_window": 4} if name == "mistral" else {}
    model = packed(make_model(name, torch.float64, **changes))
    expected = scores(model, pack(ROWS, {"p": 4}))
    batch = pack(ROWS, {"p": 4})
    vars(batch)["layout"] = FlexLayout.of(batch.segments, CPU)  # as on a GPU
    for one, other in zip(scores(model, batch), expected, strict=True):
        assert float((one - other).abs().max()) < 1e-7


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_model_on_a_gpu_attends_by_flex_attention_and_gives_the_same() -> None:
    model = make_model("llama", head_dim=16)  # its kernels take no smaller heads
    rows = [*ROWS, PackedRow("p", (*range(1, 40), -1, -2, -3, -4), ((5, 6),))]
    expected = scores(packed(model), pack(rows, {"p": 4}))
    on_gpu = PackedModel(model.cuda())
    batch = pack(rows, {"p": 4}).to(on_gpu.device)
    assert isinstance(batch.layout, FlexLayout)
    for one, other in zip(scores(on_gpu, batch), expected, strict=True):
        assert float((one.cpu() - other).abs().max()) < 1e-4
