from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import EncoderDecoderCache

from encoders.errors import PromptError
from encoders.prompted.prefix_cache import (
    DecodingCache,
    PrefixStates,
    StatelessCache,
    cache_under_checkpointing,
    stateless_cache,
)
from encoders.prompted.prompted_model import PromptedModel
from tests.encoders.tiny_models import (
    CAUSAL,
    ENCODERS,
    NAMES,
    SEQ2SEQ,
    TASKS,
    add_mixed,
    gradients,
    largest_difference,
    make_base,
    ragged,
    shared_base,
    unchanged,
)


def states(
    slot_rows: list[list[int]], num_leading: int, num_layers: int = 2
) -> tuple[PrefixStates, Tensor]:
    """Prefixes of 2 heads of size 3, and their random table."""
    table = torch.randn(4, num_layers, 2, 2, 3, generator=torch.Generator().manual_seed(0))
    return PrefixStates(table, torch.tensor(slot_rows), num_leading), table


@given(st.lists(st.lists(st.integers(0, 4), min_size=5, max_size=5), min_size=1, max_size=4))
@settings(max_examples=40, deadline=None)
def test_prefixes_stand_in_their_slots_and_made_states_in_the_others(
    slot_rows: list[list[int]],
) -> None:
    num_leading = next((i for i in range(5) if any(row[i] == 0 for row in slot_rows)), 5)
    prefix, table = states(slot_rows, num_leading)
    made = torch.randn(2, len(slot_rows), 2, 5 - num_leading, 3)
    found = prefix.complete(made[0], made[1], 1)
    for kind in (0, 1):
        assert found[kind].shape == (len(slot_rows), 2, 5, 3)
        for i, row in enumerate(slot_rows):
            for slot, number in enumerate(row):
                expected = (
                    table[number - 1, 1, kind] if number else made[kind, i, :, slot - num_leading]
                )
                assert torch.equal(found[kind][i, :, slot], expected)


def test_a_stateless_cache_gives_the_same_again() -> None:
    prefix, _ = states([[1, 2, 0, 0]], num_leading=2)
    cache = StatelessCache(prefix)
    keys, values = torch.randn(2, 1, 2, 2, 3)
    first = cache.update(keys, values, 0)
    assert all(map(torch.equal, cache.update(keys, values, 0), first))
    assert cache.get_seq_length() == 2
    assert cache.get_mask_sizes(2, 0) == (4, 0)


def test_a_stateless_pair_stores_no_cross_attention() -> None:
    prefix, _ = states([[1, 2, 0, 0]], num_leading=2)
    cache = stateless_cache(prefix, is_encoder_decoder=True)
    assert isinstance(cache, EncoderDecoderCache)
    keys, values = torch.randn(2, 1, 2, 2, 3)
    for _ in range(2):
        found = cache.cross_attention_cache.update(keys, values, 0)
        cache.is_updated[0] = True
        assert found[0] is keys
        assert not cache.is_updated.get(0)


def test_a_decoding_cache_puts_prefixes_in_once_and_grows() -> None:
    prefix, table = states([[0, 3, 0]], num_leading=0)
    cache = DecodingCache(prefix, shared_base("llama").config)
    keys, values = torch.randn(2, 1, 2, 3, 3)
    first, _ = cache.update(keys, values, 0)
    assert torch.equal(first[0, :, 1], table[2, 0, 0])
    more = torch.randn(1, 2, 1, 3)
    later, _ = cache.update(more, more, 0)
    assert torch.equal(later, torch.cat([first, more], 2))
    assert cache.get_seq_length() == 4


def test_new_slots_hold_no_prefix() -> None:
    prefix, table = states([[3, 0]], num_leading=0)
    keys, values = torch.randn(2, 1, 2, 4, 3)
    found, _ = prefix.expanded(2).complete(keys, values, 0)
    assert torch.equal(found[0, :, 0], table[2, 0, 0])
    assert torch.equal(found[:, :, 1:], keys[:, :, 1:])


def test_a_base_that_ignores_the_prefix_is_refused() -> None:
    base = shared_base("llama")
    prefix, _ = states([[1, 0]], num_leading=1)
    prefix.complete(*torch.randn(2, 1, 2, 1, 3), 0)
    with pytest.raises(PromptError, match=r"LlamaForCausalLM did not use .* layers \[1\]"):
        prefix.check_used(base)


def test_other_key_heads_than_the_bases_are_refused() -> None:
    """Otherwise one head would silently be broadcast to all."""
    prefix, _ = states([[1, 0]], num_leading=1)
    with pytest.raises(PromptError, match="2 key heads of size 3, but .* 1 of 3: give num_att"):
        prefix.complete(*torch.randn(2, 1, 1, 1, 3), 0)


@pytest.mark.parametrize("architecture", [*CAUSAL, *ENCODERS, *SEQ2SEQ])
def test_gradients_are_the_same_under_checkpointing(architecture: str) -> None:
    task = "MASKED_LM" if architecture in ENCODERS else "CAUSAL_LM"
    task = "SEQ_2_SEQ_LM" if architecture in SEQ2SEQ else task
    base = make_base(architecture, task, **_without_dropout(architecture))
    model = PromptedModel(base)
    add_mixed(model, NAMES, task_type=None if task == "MASKED_LM" else task)
    model.train()
    ids, mask = ragged("left", (4, 9, 2, 7, 5))
    labels = ids.masked_fill(mask == 0, -100)
    call: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    call |= {"prompts": NAMES, "task_ids": TASKS}
    expected = gradients(model, model(**call).loss)
    base.activation_checkpointing_enable()
    runs = _count_layer_runs(base)
    with unchanged(base):
        found = gradients(model, model(**call).loss)
    assert largest_difference(found, expected) < 1e-6
    assert set(runs.values()) == {2}  # forward, and again in backward
    prefix_only = {**call, "prompts": "wide"}
    found = gradients(model, model(**prefix_only).loss)
    base.activation_checkpointing_disable()
    assert largest_difference(found, gradients(model, model(**prefix_only).loss)) < 1e-6


def _without_dropout(architecture: str) -> dict[str, Any]:
    names = {
        "gpt2": ("resid_pdrop", "embd_pdrop", "attn_pdrop"),
        "t5": ("dropout_rate",),
        "bart": ("dropout", "attention_dropout", "activation_dropout"),
        "bert": ("hidden_dropout_prob", "attention_probs_dropout_prob"),
    }
    return dict.fromkeys(
        names.get(architecture, names["bert"] if architecture in ENCODERS else ()), 0.0
    )


def _count_layer_runs(base: Any) -> dict[str, int]:
    """How often each layer's first module with weights runs."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    runs: dict[str, int] = {}
    for name, module in base.named_modules():
        if isinstance(module, GradientCheckpointingLayer):
            inner = next(each for each in module.modules() if each._parameters)

            def count(*_: object, name: str = name) -> None:
                runs[name] = runs.get(name, 0) + 1

            inner.register_forward_pre_hook(count)
    return runs


def test_reentrant_checkpointing_of_a_prefix_is_refused() -> None:
    """It would give the prefix no gradient, and say so in no way."""
    base = make_base("llama")
    model = PromptedModel(base)
    add_mixed(model, ("short", "wide"))
    model.train()
    base.activation_checkpointing_enable({"use_reentrant": True})
    ids = torch.tensor([[5, 6, 7]])
    with unchanged(base), pytest.raises(PromptError, match="use_reentrant=False"):
        model(input_ids=ids, labels=ids, prompts="wide")
    model(input_ids=ids, labels=ids, prompts="short").loss.backward()
    assert all(each.grad is not None for each in model.prompts["short"].parameters())


def test_layers_drop_other_caches_again_afterwards() -> None:
    base = make_base("llama")
    base.train()
    base.activation_checkpointing_enable()
    layer = base.model.layers[0]
    with cache_under_checkpointing(base):
        assert layer._can_checkpoint_with_cache
    assert not layer._can_checkpoint_with_cache
    assert "_can_checkpoint_with_cache" not in vars(layer)
