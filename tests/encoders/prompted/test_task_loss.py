"""Losses against transformers' own for one prompt, and against sums by hand for several."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from encoders.config import PromptTuningConfig
from encoders.errors import PromptError
from encoders.prompted.prompted_model import PromptedModel
from tests.encoders.tiny_models import difference, make_base, peft_pair, ragged, shared_base

IDS = torch.tensor([[5, 6, 7], [8, 9, 10], [11, 12, 13], [14, 15, 16]])


def model_with(num_labels: dict[str, int], **options: Any) -> PromptedModel:
    model = PromptedModel(shared_base("bert", "SEQ_CLS"))
    for name, count in num_labels.items():
        config = PromptTuningConfig(num_virtual_tokens=2, task_type="SEQ_CLS")
        model.add_prompt(name, config, num_labels=count, **options)
    return model


@pytest.mark.parametrize(
    ("num_labels", "problem_type", "labels"),
    [
        (3, None, torch.tensor([0, 2, 1, 0])),
        (3, None, torch.tensor([0, -100, 1, -100])),
        (3, None, torch.tensor([[0], [2], [1], [0]])),
        (1, None, torch.tensor([0.5, -1.0, 2.0, 0.0])),
        (3, "regression", torch.randn(4, 3)),
        (3, None, torch.tensor([[0.0, 1, 1], [1, 0, 0], [0, 0, 0], [1, 1, 1]])),
    ],
)
def test_one_prompts_loss_is_transformers(
    num_labels: int, problem_type: str | None, labels: Tensor
) -> None:
    base = make_base("bert", "SEQ_CLS", num_labels=num_labels, problem_type=problem_type)
    ours, theirs = peft_pair(base, "P_TUNING", 3, "SEQ_CLS")
    call = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS), "labels": labels}
    assert difference(ours(**call).loss, theirs(**call).loss) < 1e-6


def test_rows_of_every_problem_share_a_batch() -> None:
    model = model_with({"two": 2, "five": 5, "one": 1})
    names = ["two", "one", "five", "one"]
    labels = torch.tensor([1.0, -0.5, 4.0, 3.0])
    out = model(input_ids=IDS, labels=labels, prompts=names)
    two = F.cross_entropy(out.logits[:1, :2], torch.tensor([1]))
    five = F.cross_entropy(out.logits[2:3], torch.tensor([4]))
    one = (out.logits[1, 0] + 0.5) ** 2 + (out.logits[3, 0] - 3.0) ** 2
    assert difference(out.loss, (two + five + one) / 4) < 1e-6


def test_a_problem_type_may_be_given() -> None:
    model = model_with({"a": 2, "b": 3}, problem_type="multi_label_classification")
    labels = torch.tensor([[0, 1, 0], [1, 1, 0], [1, 0, 1], [1, 1, 1]])
    out = model(input_ids=IDS, labels=labels, prompts=["a", "a", "b", "b"])
    losses = [
        F.binary_cross_entropy_with_logits(out.logits[row, :n], labels[row, :n].float())
        for row, n in enumerate((2, 2, 3, 3))
    ]
    assert difference(out.loss, torch.stack(losses).mean()) < 1e-6


def test_too_few_numbers_for_the_labels_are_refused() -> None:
    model = model_with({"a": 3}, problem_type="multi_label_classification")
    with pytest.raises(PromptError, match="'a' has 3 labels, but a row gives 2 numbers"):
        model(input_ids=IDS, labels=torch.rand(4, 2))


def test_a_label_of_another_prompts_range_is_an_error_and_not_an_infinite_loss() -> None:
    model = model_with({"a": 2, "b": 5})
    with pytest.raises(IndexError):
        model(input_ids=IDS, labels=torch.tensor([4, 0, 4, 0]), prompts=["a", "a", "b", "b"])


def test_labels_of_padding_are_ignored() -> None:
    model = PromptedModel(shared_base("bert", "TOKEN_CLS"))
    model.add_prompt("a", PromptTuningConfig(num_virtual_tokens=2, task_type="TOKEN_CLS"))
    ids, mask = ragged("left", (3, 5))
    labels = ids % 2
    expected = model(
        input_ids=ids, attention_mask=mask, labels=labels.masked_fill(mask == 0, -100)
    ).loss
    assert torch.equal(model(input_ids=ids, attention_mask=mask, labels=labels).loss, expected)


def test_spans_outside_of_the_text_are_ignored() -> None:
    model = PromptedModel(shared_base("bert", "QUESTION_ANS"))
    model.add_prompt("a", PromptTuningConfig(num_virtual_tokens=2, task_type="QUESTION_ANS"))
    ids, mask = ragged("left", (3, 5))
    call = {"input_ids": ids, "attention_mask": mask}
    alone = model(
        input_ids=ids[1:], start_positions=torch.tensor([2]), end_positions=torch.tensor([4])
    ).loss
    for outside in (0, 99, -1):  # padding, beyond the end, before the start
        start, end = torch.tensor([[outside], [2]]), torch.tensor([[outside], [4]])
        found = model(**call, start_positions=start, end_positions=end).loss
        assert difference(found, alone) < 1e-5
