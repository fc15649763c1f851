"""How a PromptedModel is used and trained: prompts come and go, the base stays, errors say why."""

import copy
from typing import Any

import pytest
import torch

from encoders.config import PromptTuningConfig
from encoders.errors import EncoderError, PromptError
from encoders.modules.prompt_embedding import PromptEmbedding
from encoders.prompted.prompted_model import PromptedModel
from tests.encoders.tiny_models import (
    EXACT,
    LENGTHS,
    NAMES,
    TASKS,
    add_mixed,
    difference,
    kind_config,
    make_base,
    mixed_model,
    ragged,
    shared_base,
    unchanged,
)


def test_prompts_come_and_go_without_touching_the_others() -> None:
    base = make_base("llama")
    with unchanged(base):
        model = PromptedModel(base)
        add_mixed(model, NAMES)
        ids, mask = ragged("left", LENGTHS)
        call = {"input_ids": ids, "attention_mask": mask, "task_ids": TASKS}
        expected = model(**call, prompts=NAMES).logits
        states = {name: copy.deepcopy(model.prompts[name].state_dict()) for name in NAMES}
        model.remove_prompt("short")
        model.add_prompt("another.name/with signs", kind_config("P_TUNING", 7))
        assert list(model.prompts) == [*NAMES[1:], "another.name/with signs"]
        names = ["another.name/with signs", *NAMES[1:]]
        assert difference(model(**call, prompts=names).logits[1:], expected[1:]) < EXACT
        for name in NAMES[1:]:
            for key, tensor in model.prompts[name].state_dict().items():
                assert torch.equal(tensor, states[name][key])


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
