from typing import Any

import pytest
import torch
from torch import nn

from encoders.config import TaskType
from encoders.errors import PromptError
from encoders.modules.task_head import copy_heads
from encoders.prompted.prompted_model import PromptedModel
from tests.encoders.tiny_models import (
    add_mixed,
    difference,
    kind_config,
    make_base,
    peft_pair,
    shared_base,
    unchanged,
)


@pytest.mark.parametrize(
    ("architecture", "task", "name"),
    [
        ("llama", "SEQ_CLS", "score"),
        ("bert", "SEQ_CLS", "classifier"),
        ("roberta", "SEQ_CLS", "classifier"),
        ("bert", "TOKEN_CLS", "classifier"),
        ("llama", "TOKEN_CLS", "score"),
        ("bert", "QUESTION_ANS", "qa_outputs"),
    ],
)
def test_a_head_is_a_trainable_copy_of_the_bases(architecture: str, task: str, name: str) -> None:
    base = make_base(architecture, task)
    base.requires_grad_(False)
    heads = copy_heads(base, TaskType(task))
    assert list(heads) == [name]
    theirs = base.get_submodule(name).state_dict()
    for key, weight in heads[name].state_dict().items():
        assert torch.equal(weight, theirs[key])
        assert weight.data_ptr() != theirs[key].data_ptr()
    assert all(each.requires_grad for each in heads.parameters())
    assert not any(each.requires_grad for each in base.parameters())


@pytest.mark.parametrize(
    ("architecture", "path"), [("llama", "score"), ("roberta", "classifier.out_proj")]
)
def test_another_number_of_labels_gets_a_new_last_layer(architecture: str, path: str) -> None:
    base = make_base(architecture, "SEQ_CLS")
    with unchanged(base):
        heads = copy_heads(base, TaskType.SEQ_CLS, num_labels=7)
    last = heads.get_submodule(path)
    assert isinstance(last, nn.Linear)
    assert last.out_features == 7
    assert 0.01 < float(last.weight.std()) < 0.03  # the base's initializer_range is 0.02
    assert last.bias is None or not last.bias.any()
    assert last.weight.requires_grad
    same = copy_heads(base, TaskType.SEQ_CLS, num_labels=2)
    assert torch.equal(same.get_submodule(path).weight, base.get_submodule(path).weight)


def test_language_models_have_no_heads_of_their_own() -> None:
    assert not len(copy_heads(shared_base("llama"), TaskType.CAUSAL_LM))
    assert not len(copy_heads(shared_base("bert", "MASKED_LM"), None))


def test_more_modules_may_be_trained_beside_a_prompt() -> None:
    base = shared_base("distilbert", "SEQ_CLS")
    assert set(copy_heads(base, TaskType.SEQ_CLS)) == {"pre_classifier", "classifier"}  # as PEFT
    model = PromptedModel(base)
    config = kind_config("P_TUNING", 2, task_type="SEQ_CLS", modules_to_save=["pre_classifier"])
    one, other = model.add_prompt("one", config), model.add_prompt("other", config)
    ids = torch.tensor([[5, 6, 7]]).expand(2, -1)
    other.encoder.load_state_dict(one.encoder.state_dict())
    before = model(input_ids=ids, prompts=["one", "other"]).logits
    assert difference(before[0], before[1]) < 1e-6
    nn.init.normal_(other.heads["pre_classifier"].weight)
    after = model(input_ids=ids, prompts=["one", "other"]).logits
    assert difference(after[0], before[0]) < 1e-6
    assert difference(after[1], before[1]) > 1e-3


def test_rows_without_a_copy_of_a_module_use_the_bases() -> None:
    base = shared_base("llama")
    model = PromptedModel(base)
    config = kind_config("P_TUNING", 2, modules_to_save=["lm_head"])
    model.add_prompt("with", config)
    without = model.add_prompt("without", kind_config("P_TUNING", 2))
    without.encoder.load_state_dict(model.prompts["with"].encoder.state_dict())
    ids = torch.tensor([[5, 6, 7]]).expand(2, -1)
    call: dict[str, Any] = {"input_ids": ids, "labels": ids, "prompts": ["with", "without"]}
    before = model(**call)
    assert difference(before.logits[0], before.logits[1]) < 1e-5
    model.prompts["with"].heads["lm_head"].weight.data *= 2
    after = model(**call)
    assert difference(after.logits[0], 2 * before.logits[0]) < 1e-5
    assert difference(after.logits[1], before.logits[1]) < 1e-5
    new = model.generate(ids[:1], prompts="with", max_new_tokens=3, do_sample=False)
    assert new.shape == (1, 6)


def test_a_saved_module_generates_as_in_peft() -> None:
    ours, theirs = peft_pair(
        shared_base("llama"), "P_TUNING", 3, "CAUSAL_LM", modules_to_save=["lm_head"]
    )
    head = ours.prompts["it"].heads["lm_head"].weight
    nn.init.normal_(head)
    theirs.base_model.lm_head.modules_to_save["default"].weight.data.copy_(head)
    ids = torch.tensor([[5, 6, 7], [8, 9, 10]])
    call = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "num_beams": 3}
    call |= {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
    assert torch.equal(ours.generate(**call), theirs.generate(**call))


def test_labels_where_there_are_none_are_refused() -> None:
    for task, base in (
        (TaskType.CAUSAL_LM, shared_base("llama")),
        (TaskType.QUESTION_ANS, shared_base("bert", "QUESTION_ANS")),
    ):
        with pytest.raises(PromptError, match="it is for SEQ_CLS and TOKEN_CLS"):
            copy_heads(base, task, num_labels=3)
    with pytest.raises(PromptError, match="num_labels is 0"):
        copy_heads(shared_base("llama", "SEQ_CLS"), TaskType.SEQ_CLS, num_labels=0)


def test_a_head_of_a_sharded_base_is_not_copied_empty() -> None:
    base = make_base("llama", "SEQ_CLS")
    base.score.weight.data = torch.empty(0)
    with pytest.raises(PromptError, match="sharded: attach prompts with .*'score'.* before"):
        copy_heads(base, TaskType.SEQ_CLS)


def test_unknown_modules_to_save_are_refused() -> None:
    with pytest.raises(PromptError, match="names 'head', but the base's are model, score"):
        copy_heads(shared_base("llama", "SEQ_CLS"), TaskType.SEQ_CLS, ["head"])


def test_the_bases_own_head_answers_as_before_outside_of_a_call() -> None:
    base = make_base("bert", "SEQ_CLS")
    ids = torch.tensor([[5, 6, 7]])
    expected = base(input_ids=ids).logits
    model = PromptedModel(base)
    add_mixed(model, ("short", "wide"), task_type="SEQ_CLS")
    model(input_ids=ids, prompts="wide")
    with pytest.raises(IndexError):  # the hook is gone after an error too
        model(input_ids=ids, labels=torch.tensor([9]), prompts="wide")
    assert torch.equal(base(input_ids=ids).logits, expected)
