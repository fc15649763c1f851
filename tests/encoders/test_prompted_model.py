"""Batches of many prompts against each row run alone and unpadded, and against real PEFT."""

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from encoders.config import PrefixTuningConfig, PromptTuningConfig
from encoders.errors import EncoderError, PromptError
from encoders.prefix_encoder import PrefixEncoder
from encoders.prompt_embedding import PromptEmbedding
from encoders.prompted_model import PromptedModel
from tests.encoders.tiny_models import (
    CAUSAL,
    ENCODERS,
    KINDS,
    MIXED,
    add_mixed,
    difference,
    gradients,
    kind_config,
    largest_difference,
    make_base,
    peft_pair,
    ragged,
    shared_base,
    task_ids_for,
    unchanged,
)

EXACT = 1e-5
LENGTHS = (4, 9, 2, 7, 5)
NAMES = tuple(MIXED)
TASKS = torch.tensor([0, 2, 1, 2, 0])


def mixed_model(architecture: str, task: str = "CAUSAL_LM", **fields: Any) -> PromptedModel:
    model = PromptedModel(shared_base(architecture, task))
    add_mixed(model, NAMES, **fields)
    return model


def row_alone(model: PromptedModel, row: int, ids: Tensor, mask: Tensor, **more: Any) -> Any:
    text = ids[row][mask[row].bool()][None]
    return model(input_ids=text, prompts=NAMES[row], task_ids=TASKS[row : row + 1], **more)


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


def test_prompts_come_and_go_without_touching_the_others() -> None:
    base = make_base("llama")
    with unchanged(base):
        model = PromptedModel(base)
        add_mixed(model, NAMES)
        ids, mask = ragged("left", LENGTHS)
        call = {"input_ids": ids, "attention_mask": mask, "task_ids": TASKS}
        expected = model(**call, prompts=NAMES).logits
        states = {name: dict(model.prompts[name].state_dict()) for name in NAMES}
        model.remove_prompt("short")
        model.add_prompt("another.name/with signs", kind_config("P_TUNING", 7))
        assert list(model.prompts) == [*NAMES[1:], "another.name/with signs"]
        names = ["another.name/with signs", *NAMES[1:]]
        assert difference(model(**call, prompts=names).logits[1:], expected[1:]) < EXACT
        for name in NAMES[1:]:
            for key, tensor in model.prompts[name].state_dict().items():
                assert tensor is states[name][key] or torch.equal(tensor, states[name][key])


@pytest.mark.parametrize("architecture", ["llama", "bert"])
def test_training_changes_prompts_and_leaves_the_base_as_it_was(architecture: str) -> None:
    base = make_base(architecture, "SEQ_CLS", num_labels=3)
    with unchanged(base):
        model = PromptedModel(base)
        add_mixed(model, NAMES, task_type="SEQ_CLS")
        before = {name: each.clone() for name, each in model.prompts.named_parameters()}
        optimizer = torch.optim.AdamW(model.trainable_parameters(), lr=0.1)
        ids, mask = ragged("left", LENGTHS)
        for _ in range(2):
            loss = model(
                input_ids=ids,
                attention_mask=mask,
                labels=torch.tensor([0, 1, 2, 1, 0]),
                prompts=NAMES,
                task_ids=TASKS,
            ).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        assert all(
            not torch.equal(each, before[name]) for name, each in model.prompts.named_parameters()
        )


def test_only_prompts_and_heads_are_trainable() -> None:
    model = PromptedModel(make_base("roberta", "SEQ_CLS"))
    add_mixed(model, ("short", "wide"), task_type="SEQ_CLS")
    trainable = {name for name, each in model.named_parameters() if each.requires_grad}
    assert {name.split(".")[0] for name in trainable} == {"prompts"}
    assert any("heads.classifier" in name for name in trainable)
    assert {id(each) for each in model.trainable_parameters()} == {
        id(each) for each in model.parameters() if each.requires_grad
    }


def test_one_module_may_serve_two_names_and_is_listed_once() -> None:
    model = PromptedModel(shared_base("llama"))
    encoder = PromptEmbedding(PromptTuningConfig(num_virtual_tokens=2, token_dim=32))
    model.add_prompt("a", encoder)
    model.add_prompt("b", encoder)
    assert len(list(model.trainable_parameters())) == 1
    ids = torch.tensor([[5, 6, 7], [5, 6, 7]])
    logits = model(input_ids=ids, prompts=["a", "b"]).logits
    assert difference(logits[0], logits[1]) < EXACT


def test_modes_reach_the_base_and_start_from_it() -> None:
    base = make_base("gpt2")
    model = PromptedModel(base)
    prompt = model.add_prompt("a", kind_config("P_TUNING", 2))
    assert not model.training
    assert not prompt.training
    model.train()
    assert base.training
    assert prompt.training
    assert model.add_prompt("b", kind_config("P_TUNING", 2)).training
    model.eval()
    assert not base.training


def test_a_broken_prompt_leaves_its_neighbours_bit_for_bit() -> None:
    for broken in ("long", "wide"):
        model = mixed_model("llama")
        ids, mask = ragged("left", LENGTHS)
        call = {"input_ids": ids, "attention_mask": mask, "prompts": NAMES, "task_ids": TASKS}
        expected = model(**call).logits.detach()
        for parameter in model.prompts[broken].parameters():
            parameter.data.fill_(torch.nan)
        found = model(**call).logits.detach()
        for row, name in enumerate(NAMES):
            if name == broken:
                assert found[row][mask[row].bool()].isnan().all()
            else:
                assert torch.equal(found[row], expected[row])


def test_an_unknown_name_is_an_error_that_lists_the_known_ones() -> None:
    model = mixed_model("llama")
    ids = torch.tensor([[5, 6]])
    for run in (model, model.generate):
        with pytest.raises(PromptError, match="no prompt 'shirt'.*'short', 'prefix', 'long'"):
            run(input_ids=ids, prompts="shirt")
        with pytest.raises(PromptError, match="no prompt 3"):
            run(input_ids=ids, prompts=[3])
    with pytest.raises(PromptError, match="no prompt 'shirt'"):
        model.remove_prompt("shirt")
    assert issubclass(PromptError, EncoderError)


def test_names_may_be_left_out_only_where_one_prompt_is_attached() -> None:
    model = PromptedModel(shared_base("llama"))
    ids = torch.tensor([[5, 6], [7, 8]])
    with pytest.raises(PromptError, match="0 prompts are attached"):
        model(input_ids=ids)
    add_mixed(model, ("short",))
    assert torch.equal(model(input_ids=ids).logits, model(input_ids=ids, prompts="short").logits)
    add_mixed(model, ("long",))
    with pytest.raises(PromptError, match="2 prompts are attached: say by prompts="):
        model(input_ids=ids)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"prompts": ["short"]}, "prompts must be one for each of the 2 rows"),
        ({"prompts": "tasks"}, "tasks 0 to 2, but a row asks for None: give task_ids"),
        ({"prompts": "tasks", "task_ids": [0, 3]}, "a row asks for 3"),
        ({"prompts": "tasks", "task_ids": [0]}, "task_ids must be one for each of the 2 rows"),
        ({"attention_mask": torch.ones(2, 9)}, r"attention_mask has the shape \(2, 9\)"),
        ({"attention_mask": torch.tensor([[1, 1], [0, 0]])}, r"the rows \[1\] have no text"),
        ({"labels": torch.ones(2, 9)}, r"labels have the shape \(2, 9\)"),
        ({"position_ids": torch.ones(2, 2)}, "does not take 'position_ids'"),
        ({"use_cache": True}, "use generate"),
        ({"input_ids": None}, "give input_ids"),
        ({"input_ids": torch.tensor([5, 6])}, "at least one row"),
        ({"input_ids": torch.empty(0, 2, dtype=torch.long)}, "at least one row"),
    ],
)
def test_bad_calls_are_refused(call: dict[str, Any], message: str) -> None:
    model = mixed_model("llama")
    with pytest.raises(PromptError, match=message):
        model(**{"input_ids": torch.tensor([[5, 6], [7, 8]]), "prompts": "short", **call})


@pytest.mark.parametrize("architecture", ["gpt2", "bert", "roberta", "bart"])
def test_rows_longer_than_the_bases_table_of_positions_are_refused(architecture: str) -> None:
    """transformers fails with an index out of range, or on a GPU with a crash of the process."""
    task = {"gpt2": "CAUSAL_LM", "bart": "SEQ_2_SEQ_LM"}.get(architecture, "MASKED_LM")
    model = PromptedModel(shared_base(architecture, task))
    add_mixed(model, ("long",), num_transformer_submodules=1)
    longest = 64 - 5 - (2 if architecture == "roberta" else 0)
    ids = torch.full((1, longest + 1), 5)
    call = {"decoder_input_ids": ids[:, :2]} if architecture == "bart" else {}
    model(input_ids=ids[:, 1:], **call)
    with pytest.raises(PromptError, match=f"{longest + 6} positions, .* base has {longest + 5}"):
        model(input_ids=ids, **call)


def test_a_tuple_is_returned_on_request() -> None:
    model = mixed_model("llama")
    ids = torch.tensor([[5, 6, 7]])
    loss, logits = model(input_ids=ids, labels=ids, prompts="short", return_dict=False)
    expected = model(input_ids=ids, labels=ids, prompts="short")
    assert torch.equal(loss, expected.loss)
    assert torch.equal(logits, expected.logits)
