"""Batches of many prompts against each row run alone and unpadded, and against real PEFT."""

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from encoders.config import PrefixTuningConfig
from encoders.errors import PromptError
from encoders.modules.prefix_encoder import PrefixEncoder
from encoders.prompted.prompted_model import PromptedModel
from tests.encoders.tiny_models import (
    CAUSAL,
    ENCODERS,
    EXACT,
    KINDS,
    LENGTHS,
    MIXED,
    NAMES,
    TASKS,
    add_mixed,
    difference,
    gradients,
    largest_difference,
    make_base,
    mixed_model,
    peft_pair,
    ragged,
    shared_base,
    task_ids_for,
)


def alone(model: PromptedModel, row: int, ids: Tensor, mask: Tensor, **more: Any) -> Any:
    """One row of the batch, without padding and without neighbours."""
    text = ids[row][mask[row].bool()][None]
    return model(input_ids=text, prompts=NAMES[row], task_ids=TASKS[row : row + 1], **more)


def causal_labels(ids: Tensor, mask: Tensor) -> Tensor:
    return ids.masked_fill(mask == 0, -100)


@pytest.mark.parametrize("side", ["left", "right", "both"])
@pytest.mark.parametrize("architecture", [*CAUSAL, *ENCODERS])
def test_mixed_rows_give_what_each_gives_alone(architecture: str, side: str) -> None:
    task = "MASKED_LM" if architecture in ENCODERS else "CAUSAL_LM"
    model = mixed_model(architecture, task)
    ids, mask = ragged(side, LENGTHS)
    together = model(input_ids=ids, attention_mask=mask, prompts=NAMES, task_ids=TASKS).logits
    assert together.shape == (*ids.shape, 97)
    for row in range(len(LENGTHS)):
        is_text = mask[row].bool()
        assert difference(together[row][is_text], alone(model, row, ids, mask).logits[0]) < EXACT
        assert not together[row][~is_text].any()


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("architecture", [*CAUSAL, *ENCODERS])
def test_mixed_rows_train_as_each_would_alone(architecture: str, side: str) -> None:
    task = "MASKED_LM" if architecture in ENCODERS else "CAUSAL_LM"
    model = mixed_model(architecture, task)
    ids, mask = ragged(side, LENGTHS)
    labels = causal_labels(ids, mask)
    loss = model(
        input_ids=ids, attention_mask=mask, labels=labels, prompts=NAMES, task_ids=TASKS
    ).loss
    losses, counts = [], []
    for row in range(len(LENGTHS)):
        text = ids[row][mask[row].bool()][None]
        losses.append(alone(model, row, ids, mask, labels=text).loss)
        # a causal model predicts the first token after virtual tokens, and not after a prefix
        is_unpredicted = architecture in CAUSAL and MIXED[NAMES[row]][0] == "PREFIX_TUNING"
        counts.append(text.numel() - int(is_unpredicted))
    total = sum(each * count for each, count in zip(losses, counts, strict=True)) / sum(counts)
    assert difference(loss, total) < EXACT
    assert largest_difference(gradients(model, loss), gradients(model, total)) < EXACT
    assert all(bool(each.any()) for each in gradients(model, total).values())


WORDS = torch.tensor([[11, 12, 13, 14]])


class WordTable(torch.nn.Module):
    """The embeddings of WORDS as a prompt."""

    def __init__(self, base: Any) -> None:
        super().__init__()
        with torch.no_grad():
            self.table = torch.nn.Parameter(base.get_input_embeddings()(WORDS)[0])

    def virtual_tokens(self) -> Tensor:
        return self.table


def word_prefix(base: Any) -> PrefixEncoder:
    """The keys and values that the base makes of WORDS, as a prefix."""
    config = PrefixTuningConfig(num_virtual_tokens=WORDS.shape[1]).completed(base.config)
    encoder = PrefixEncoder(config)
    with torch.no_grad():
        layers = base(input_ids=WORDS, use_cache=True).past_key_values.layers
        pairs = [torch.stack([layer.keys[0], layer.values[0]]) for layer in layers]
        table = torch.stack(pairs).permute(3, 0, 1, 2, 4)  # [V, layers, 2, G, d]
        encoder.load_prompt_embeddings(table.reshape(WORDS.shape[1], -1))
    return encoder


@pytest.mark.parametrize("architecture", [*CAUSAL, *ENCODERS, "mpt", "distilbert"])
def test_a_prompt_of_words_is_those_words(architecture: str) -> None:
    """The plain model is the oracle, for positions, masks, windows and scales alike."""
    is_causal = architecture in (*CAUSAL, "mpt")
    base = shared_base(architecture, "CAUSAL_LM" if is_causal else "MASKED_LM")
    model = PromptedModel(base)
    model.add_prompt("words", WordTable(base))
    names = ["words"] * 3
    if is_causal:
        model.add_prompt("prefix", word_prefix(base))
        names = ["prefix", "words", "prefix"]
    ids, mask = ragged("left", (3, 8, 5))
    found = model(input_ids=ids, attention_mask=mask, prompts=names).logits
    for row in range(3):
        text = ids[row][mask[row].bool()][None]
        whole = torch.cat([WORDS, text], 1)
        expected = base(input_ids=whole).logits[0, WORDS.shape[1] :]
        assert difference(found[row][mask[row].bool()], expected) < EXACT
        if is_causal:
            settings = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
            new = base.generate(whole, attention_mask=torch.ones_like(whole), **settings)[0, -5:]
            call = {"input_ids": ids, "attention_mask": mask, "prompts": names}
            assert torch.equal(model.generate(**call, **settings)[row, -5:], new)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", CAUSAL)
def test_unpadded_rows_equal_peft(architecture: str, kind: str) -> None:
    ours, theirs = peft_pair(shared_base(architecture), kind, 5, "CAUSAL_LM")
    ids, mask = ragged("right", (8, 8, 8))
    call = {"input_ids": ids, "attention_mask": mask, "labels": ids, **task_ids_for(kind, 3)}
    expected, found = theirs(**call), ours(**call, keep_virtual_positions=True)
    assert difference(found.logits, expected.logits) == 0.0
    assert difference(found.loss, expected.loss) == 0.0
    theirs_parameters = list(theirs.prompt_encoder["default"].parameters())
    expected_gradients = torch.autograd.grad(expected.loss, theirs_parameters)
    for mine, other in zip(gradients(ours, found.loss).values(), expected_gradients, strict=True):
        assert difference(mine, other) < 1e-6


@pytest.mark.parametrize("kind", ["P_TUNING", "PREFIX_TUNING"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_left_padding_changes_nothing_as_it_does_in_peft(architecture: str, kind: str) -> None:
    ours, theirs = peft_pair(shared_base(architecture), kind, 5, "CAUSAL_LM")
    ids, mask = ragged("left", (9, 4))
    text = ids[1][mask[1].bool()][None]
    expected = theirs(input_ids=text, attention_mask=torch.ones_like(text)).logits[0, -4:]
    padded = ours(input_ids=ids, attention_mask=mask).logits[1, -4:]
    assert difference(padded, expected) < EXACT
    wrong = theirs(input_ids=ids, attention_mask=mask).logits[1, -4:]
    assert difference(wrong, expected) > 1e-4  # PEFT counts positions from the padding


@pytest.mark.parametrize("architecture", ["mpt", "distilbert"])
def test_models_that_tell_little_of_themselves_are_as_exact(architecture: str) -> None:
    is_causal = architecture == "mpt"
    model = PromptedModel(shared_base(architecture, "CAUSAL_LM" if is_causal else "MASKED_LM"))
    names = ["short", "long", "wide" if is_causal else "tasks"]
    add_mixed(model, tuple(names))
    ids, mask = ragged("left", (4, 9, 2))
    found = model(input_ids=ids, attention_mask=mask, prompts=names, task_ids=[0, 0, 1]).logits
    for row, name in enumerate(names):
        text = ids[row][mask[row].bool()][None]
        expected = model(input_ids=text, prompts=name, task_ids=[1]).logits[0]
        assert difference(found[row][mask[row].bool()], expected) < EXACT


def test_a_prefix_is_refused_where_the_base_takes_no_past() -> None:
    """PEFT raises too, later."""
    model = PromptedModel(shared_base("distilbert", "MASKED_LM"))
    add_mixed(model, ("wide",))
    with pytest.raises(PromptError, match="DistilBertForMaskedLM takes no past_key_values"):
        model(input_ids=torch.tensor([[5, 6]]))


def test_a_prefix_may_have_the_one_key_head_that_the_bases_config_does_not_tell() -> None:
    model = PromptedModel(shared_base("falcon"))
    add_mixed(model, ("prefix",))
    ids = torch.tensor([[5, 6, 7]])
    with pytest.raises(PromptError, match="give num_attention_heads=1 and token_dim=8"):
        model(input_ids=ids)
    add_mixed(model, ("wide",), num_attention_heads=1, token_dim=8)
    found = model(input_ids=ids, prompts="wide").logits
    assert difference(found, model.base(input_ids=ids).logits) > 1e-3


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "bert", "t5"])
def test_a_base_may_hold_its_weights_in_its_own_forwards_alone(architecture: str) -> None:
    """As a sharded base does: nothing but its modules' own forward sees a weight."""
    task = {"bert": "MASKED_LM", "t5": "SEQ_2_SEQ_LM"}.get(architecture, "CAUSAL_LM")
    base = make_base(architecture, task)
    model = PromptedModel(base)
    add_mixed(model, NAMES)
    ids, mask = ragged("left", LENGTHS)
    labels = causal_labels(ids, mask)
    call = {"input_ids": ids, "attention_mask": mask, "prompts": NAMES, "task_ids": TASKS}
    with torch.no_grad():
        expected = model(**call, labels=labels).logits
        _shard(base)
        assert torch.equal(model(**call, labels=labels).logits, expected)
        if base.can_generate():
            model.generate(**call, max_new_tokens=3)


def _shard(base: Any) -> None:
    """Take every module's own weights away but while its forward runs."""
    owners = [module for module in base.modules() if module._parameters]
    weights = [
        {name: each.data for name, each in module._parameters.items() if each is not None}
        for module in owners
    ]
    for module, full in zip(owners, weights, strict=True):
        if full:

            def gather(module: Any, *_: Any, full: dict[str, Tensor] = full) -> None:
                for name, weight in full.items():
                    module._parameters[name].data = weight

            def release(module: Any, *_: Any, full: dict[str, Tensor] = full) -> None:
                for name, weight in full.items():
                    module._parameters[name].data = weight.new_empty(0)

            module.register_forward_pre_hook(gather)
            module.register_forward_hook(release)
            release(module)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_prompts_keep_their_dtype_on_any_base(dtype: torch.dtype) -> None:
    model = PromptedModel(make_base("llama").to(dtype))
    add_mixed(model, NAMES)
    ids, mask = ragged("left", LENGTHS)
    out = model(
        input_ids=ids,
        attention_mask=mask,
        labels=causal_labels(ids, mask),
        prompts=NAMES,
        task_ids=TASKS,
    )
    assert out.logits.dtype == dtype
    assert all(each.dtype == torch.float32 for each in model.prompts.parameters())
    assert all(bool(each.any()) for each in gradients(model, out.loss).values())


@given(
    rows=st.lists(
        st.tuples(st.sampled_from(NAMES), st.integers(1, 9), st.integers(0, 2)),
        min_size=1,
        max_size=6,
    ),
    side=st.sampled_from(["left", "right", "both"]),
    seed=st.integers(0, 99),
)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_batch_gives_what_its_rows_give_alone(
    rows: list[tuple[str, int, int]], side: str, seed: int
) -> None:
    model = mixed_model("gemma2")
    ids, mask = ragged(side, tuple(length for _, length, _ in rows), seed)
    names, tasks = [name for name, _, _ in rows], [task for _, _, task in rows]
    found = model(input_ids=ids, attention_mask=mask, prompts=names, task_ids=tasks).logits
    for row, (name, _, task) in enumerate(rows):
        text = ids[row][mask[row].bool()][None]
        expected = model(input_ids=text, prompts=name, task_ids=[task]).logits[0]
        assert difference(found[row][mask[row].bool()], expected) < EXACT


@pytest.mark.parametrize("architecture", ["llama", "bert"])
def test_virtual_positions_are_kept_on_request_before_the_inputs(architecture: str) -> None:
    model = mixed_model(architecture, "MASKED_LM" if architecture == "bert" else "CAUSAL_LM")
    ids, mask = ragged("left", LENGTHS)
    call = {"input_ids": ids, "attention_mask": mask, "prompts": NAMES, "task_ids": TASKS}
    kept = model(**call, keep_virtual_positions=True, output_hidden_states=True)
    stripped = model(**call, output_hidden_states=True)
    assert kept.logits.shape[1] == 5 + ids.shape[1]
    assert torch.equal(kept.logits[:, 5:], stripped.logits)
    assert torch.equal(kept.hidden_states[1][:, 5:], stripped.hidden_states[1])
    for row, name in enumerate(NAMES):
        kind, length = MIXED[name]
        num_virtual = 0 if kind == "PREFIX_TUNING" else length
        has_something = kept.logits[row, :5].any(-1)
        assert has_something.tolist() == [False] * (5 - num_virtual) + [True] * num_virtual


def test_attentions_are_between_the_inputs_positions() -> None:
    base = make_base("llama")
    base.set_attn_implementation("eager")
    model = PromptedModel(base)
    add_mixed(model, NAMES)
    ids, mask = ragged("left", LENGTHS)
    together = model(
        input_ids=ids, attention_mask=mask, prompts=NAMES, task_ids=TASKS, output_attentions=True
    )
    for row in range(len(LENGTHS)):
        is_text = mask[row].bool()
        expected = alone(model, row, ids, mask, output_attentions=True).attentions
        for found, each in zip(together.attentions, expected, strict=True):
            assert found.shape == (len(ids), 4, ids.shape[1], ids.shape[1])
            assert difference(found[row][:, is_text][:, :, is_text], each[0]) < EXACT


def test_a_mask_with_holes_takes_the_text_alone() -> None:
    model = mixed_model("llama")
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    mask = torch.tensor([[1, 0, 1, 1, 0]])
    found = model(input_ids=ids, attention_mask=mask, prompts="short").logits
    expected = model(input_ids=torch.tensor([[5, 7, 8]]), prompts="short").logits
    assert difference(found[:, [0, 2, 3]], expected) < EXACT


def test_embeddings_may_be_given_in_place_of_ids() -> None:
    model = mixed_model("gemma3")
    ids, mask = ragged("left", LENGTHS)
    call = {"attention_mask": mask, "prompts": NAMES, "task_ids": TASKS}
    embeds = model.base.get_input_embeddings()(ids)
    expected = model(input_ids=ids, **call).logits
    assert torch.equal(model(inputs_embeds=embeds, **call).logits, expected)


def test_masked_language_labels_stand_at_the_inputs_positions() -> None:
    model = mixed_model("bert", "MASKED_LM")
    ids, mask = ragged("left", LENGTHS)
    labels = torch.full_like(ids, -100)
    labels[1, -2], labels[2, -1] = 7, 8
    found = model(input_ids=ids, attention_mask=mask, labels=labels, prompts=NAMES, task_ids=TASKS)
    log_probs = found.logits.log_softmax(-1)
    expected = -(log_probs[1, -2, 7] + log_probs[2, -1, 8]) / 2
    assert difference(found.loss, expected) < EXACT


def test_prefixes_of_one_length_need_no_queries() -> None:
    """As fast as PEFT where PEFT can run it: a shared prefix is a past."""
    model = mixed_model("llama")
    seen: list[int] = []
    handle = model.base.model.layers[0].register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(args[0].shape[1]), with_kwargs=True
    )
    ids, mask = ragged("right", (4, 7))
    model(input_ids=ids, attention_mask=mask, prompts="wide")
    model(input_ids=ids, attention_mask=mask, prompts=["wide", "prefix"])
    handle.remove()
    assert seen == [7, max(4 + 6, 7 + 3) - 3]
