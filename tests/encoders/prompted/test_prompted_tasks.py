"""Classification, tokens, spans and features: mixed rows against each alone, and real PEFT."""

from typing import Any

import pytest
import torch
from torch import Tensor

from encoders.errors import PromptError
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
    kind_config,
    largest_difference,
    make_base,
    peft_pair,
    ragged,
    randomise,
    shared_base,
    task_ids_for,
)

NUM_LABELS = (2, 3, 4, 2, 5)
#: transformers' models for classes of whole rows and of spans, for each architecture.
CLASSIFIERS = ("llama", "gpt2", "gemma3", "gpt_neox", "mistral", "qwen3", *ENCODERS)
SPANS = ("llama", "gpt2", "gpt_neox", *ENCODERS)


def headed_model(architecture: str, task: str) -> PromptedModel:
    """Every prompt has a head of its own, with another number of labels."""
    model = PromptedModel(shared_base(architecture, task))
    for name, num_labels in zip(NAMES, NUM_LABELS, strict=True):
        kind, length = MIXED[name]
        config = kind_config(kind, length, task_type=task)
        labels = None if task == "QUESTION_ANS" else num_labels
        randomise(model.add_prompt(name, config, num_labels=labels), seed=len(name))
    return model


def alone(model: PromptedModel, row: int, ids: Tensor, mask: Tensor, **more: Any) -> Any:
    text = ids[row][mask[row].bool()][None]
    return model(input_ids=text, prompts=NAMES[row], task_ids=TASKS[row : row + 1], **more)


def check_against_rows_alone(
    model: PromptedModel, together: Any, rows: list[Any], weights: list[float], name: str
) -> None:
    """The loss is the weighted mean of the rows' and so are the gradients."""
    total = sum(each.loss * weight for each, weight in zip(rows, weights, strict=True))
    total = total / sum(weights)
    assert difference(together.loss, total) < EXACT
    found = gradients(model, together.loss)
    assert largest_difference(found, gradients(model, total)) < EXACT
    heads = [key for key in found if f"heads.{name}" in key and key.endswith("weight")]
    assert len(heads) >= len(NAMES)
    assert all(found[key].any() for key in heads)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("architecture", CLASSIFIERS)
def test_rows_are_classified_by_their_own_heads(architecture: str, side: str) -> None:
    model = headed_model(architecture, "SEQ_CLS")
    ids, mask = ragged(side, LENGTHS)
    labels = torch.tensor([1, 2, 3, 0, 4])
    together = model(
        input_ids=ids, attention_mask=mask, labels=labels, prompts=NAMES, task_ids=TASKS
    )
    assert together.logits.shape == (5, 5)
    rows = []
    for row, num_labels in enumerate(NUM_LABELS):
        rows.append(alone(model, row, ids, mask, labels=labels[row : row + 1]))
        assert rows[-1].logits.shape == (1, num_labels)
        assert difference(together.logits[row, :num_labels], rows[-1].logits[0]) < EXACT
        assert together.logits[row, num_labels:].eq(-torch.inf).all()
    head = "classifier" if architecture in ENCODERS else "score"
    check_against_rows_alone(model, together, rows, [1.0] * 5, head)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox", *ENCODERS])
def test_tokens_are_classified_by_their_rows_own_heads(architecture: str, side: str) -> None:
    model = headed_model(architecture, "TOKEN_CLS")
    ids, mask = ragged(side, LENGTHS)
    limits = torch.tensor(NUM_LABELS).unsqueeze(1)
    labels = (ids % limits).masked_fill(mask == 0, -100)
    together = model(
        input_ids=ids, attention_mask=mask, labels=labels, prompts=NAMES, task_ids=TASKS
    )
    assert together.logits.shape == (*ids.shape, 5)
    rows = []
    for row, num_labels in enumerate(NUM_LABELS):
        is_text = mask[row].bool()
        rows.append(alone(model, row, ids, mask, labels=labels[row][is_text][None]))
        found = together.logits[row][is_text]
        assert difference(found[:, :num_labels], rows[-1].logits[0]) < EXACT
        assert found[:, num_labels:].eq(-torch.inf).all()
    head = "score" if architecture in ("llama",) else "classifier"
    check_against_rows_alone(model, together, rows, [float(n) for n in LENGTHS], head)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("architecture", SPANS)
def test_spans_are_found_in_the_text_alone(architecture: str, side: str) -> None:
    model = headed_model(architecture, "QUESTION_ANS")
    ids, mask = ragged(side, LENGTHS)
    first = mask.argmax(1)
    start, end = first, first + mask.sum(1) - 1
    together = model(
        input_ids=ids,
        attention_mask=mask,
        start_positions=start,
        end_positions=end,
        prompts=NAMES,
        task_ids=TASKS,
    )
    rows = []
    for row, length in enumerate(LENGTHS):
        is_text = mask[row].bool()
        spans = {"start_positions": [0], "end_positions": [length - 1]}
        tensors = {name: torch.tensor(value) for name, value in spans.items()}
        rows.append(alone(model, row, ids, mask, **tensors))
        for name in ("start_logits", "end_logits"):
            assert together[name].shape == ids.shape
            assert difference(together[name][row][is_text], rows[-1][name][0]) < EXACT
            assert together[name][row][~is_text].eq(-torch.inf).all()
    check_against_rows_alone(model, together, rows, [1.0] * 5, "qa_outputs")


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("architecture", [*CAUSAL, *ENCODERS])
def test_features_are_those_of_the_text(architecture: str, side: str) -> None:
    model = PromptedModel(shared_base(architecture, "FEATURE_EXTRACTION"))
    add_mixed(model, NAMES, task_type="FEATURE_EXTRACTION")
    ids, mask = ragged(side, LENGTHS)
    together = model(input_ids=ids, attention_mask=mask, prompts=NAMES, task_ids=TASKS)
    assert together.get("past_key_values") is None
    for row in range(len(LENGTHS)):
        expected = alone(model, row, ids, mask)
        found = together.last_hidden_state[row][mask[row].bool()]
        assert difference(found, expected.last_hidden_state[0]) < EXACT
        if architecture in ENCODERS:
            pooled = together.pooler_output[row]
            assert difference(pooled, expected.pooler_output[0]) < EXACT


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ["llama", "gpt2", *ENCODERS])
def test_unpadded_classes_equal_peft(architecture: str, kind: str) -> None:
    base = shared_base(architecture, "SEQ_CLS")
    ours, theirs = peft_pair(base, kind, 4, "SEQ_CLS")
    ids, mask = ragged("right", (8, 8, 8))
    call = {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([0, 1, 1])}
    call |= task_ids_for(kind, 3)
    expected, found = theirs(**call), ours(**call)
    assert difference(found.logits, expected.logits) < 1e-6
    assert difference(found.loss, expected.loss) < 1e-6
    table = theirs.prompt_encoder["default"].embedding.weight
    head = next(each for name, each in theirs.named_parameters() if "modules_to_save" in name)
    for other in torch.autograd.grad(expected.loss, [table, head]):
        mine = gradients(ours, found.loss).values()
        assert min(difference(each, other) for each in mine if each.shape == other.shape) < 1e-6


@pytest.mark.parametrize("task", ["TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION"])
@pytest.mark.parametrize("kind", ["P_TUNING", "PREFIX_TUNING"])
def test_unpadded_outputs_equal_peft_on_every_task(kind: str, task: str) -> None:
    ours, theirs = peft_pair(shared_base("bert", task), kind, 4, task)
    ids, mask = ragged("right", (8, 8, 8))
    expected = theirs(input_ids=ids, attention_mask=mask)
    found = ours(input_ids=ids, attention_mask=mask, keep_virtual_positions=True)
    names = [name for name in found if name != "pooler_output"]
    assert names
    for name in names:
        assert difference(found[name], expected[name]) < 1e-6


def test_peft_does_not_shift_token_labels() -> None:
    ours, theirs = peft_pair(shared_base("bert", "TOKEN_CLS"), "P_TUNING", 4, "TOKEN_CLS")
    ids, mask = ragged("right", (8, 8))
    call = {"input_ids": ids, "attention_mask": mask, "labels": ids % 2}
    with pytest.raises(ValueError, match="batch_size"):
        theirs(**call)
    logits = theirs(input_ids=ids, attention_mask=mask).logits[:, 4:]
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), (ids % 2).flatten())
    assert difference(ours(**call).loss, expected) < EXACT


def test_peft_does_not_shift_span_positions() -> None:
    """Its loss asks for virtual tokens in place of the answer."""
    ours, theirs = peft_pair(shared_base("bert", "QUESTION_ANS"), "P_TUNING", 4, "QUESTION_ANS")
    ids, mask = ragged("right", (8, 8))
    start, end = torch.tensor([1, 2]), torch.tensor([3, 6])
    call = {"input_ids": ids, "attention_mask": mask}
    theirs_logits = theirs(**call)
    spans = {"start_positions": start, "end_positions": end}

    def loss(first: int) -> Tensor:
        """Cross-entropy in PEFT's logits from position `first` on."""
        losses = [
            torch.nn.functional.cross_entropy(logits[:, first:], target)
            for logits, target in (
                (theirs_logits.start_logits, start),
                (theirs_logits.end_logits, end),
            )
        ]
        return (losses[0] + losses[1]) / 2

    assert difference(theirs(**call, **spans).loss, loss(0)) < EXACT
    assert difference(ours(**call, **spans).loss, loss(4)) < EXACT
    assert difference(loss(0), loss(4)) > 1e-3


@pytest.mark.parametrize("task", ["QUESTION_ANS", "FEATURE_EXTRACTION"])
def test_peft_forgets_task_ids(task: str) -> None:
    kind = "MULTITASK_PROMPT_TUNING"
    ours, theirs = peft_pair(shared_base("bert", task), kind, 4, task)
    ids, mask = ragged("right", (8, 8))
    call = {"input_ids": ids, "attention_mask": mask}
    with pytest.raises(ValueError, match="task_ids cannot be None"):
        theirs(**call, task_ids=torch.tensor([0, 1]))
    name = "start_logits" if task == "QUESTION_ANS" else "last_hidden_state"
    zero, one = (ours(**call, task_ids=[id] * 2)[name] for id in (0, 1))
    both = ours(**call, task_ids=torch.tensor([0, 1]))[name]
    assert difference(both[0], zero[0]) < EXACT
    assert difference(both[1], one[1]) < EXACT
    assert difference(zero[1], one[1]) > 1e-4


@pytest.mark.parametrize("side", ["left", "right"])
def test_token_types_stand_at_the_inputs_positions(side: str) -> None:
    model = PromptedModel(shared_base("bert", "FEATURE_EXTRACTION"))
    add_mixed(model, NAMES)
    ids, mask = ragged(side, LENGTHS)
    types = ids % 2 * mask
    call = {"prompts": NAMES, "task_ids": TASKS}
    together = model(input_ids=ids, attention_mask=mask, token_type_ids=types, **call)
    for row in range(len(LENGTHS)):
        is_text = mask[row].bool()
        expected = alone(model, row, ids, mask, token_type_ids=types[row][is_text][None])
        found = together.last_hidden_state[row][is_text]
        assert difference(found, expected.last_hidden_state[0]) < EXACT


def test_token_types_equal_peft() -> None:
    ours, theirs = peft_pair(shared_base("bert", "SEQ_CLS"), "P_TUNING", 4, "SEQ_CLS")
    ids, mask = ragged("right", (8, 8))
    call = {"input_ids": ids, "attention_mask": mask, "token_type_ids": ids % 2}
    assert difference(ours(**call).logits, theirs(**call).logits) < 1e-6


def test_the_loss_leaves_the_bases_config_alone() -> None:
    """transformers writes the first batch's problem type into the shared config."""
    base = make_base("bert", "SEQ_CLS")
    model = PromptedModel(base)
    model.add_prompt("a", kind_config("P_TUNING", 2))
    ids = torch.tensor([[5, 6, 7]])
    model(input_ids=ids, labels=torch.tensor([1]))
    assert base.config.problem_type is None


def test_a_prompt_of_another_task_or_without_a_head_is_refused() -> None:
    model = PromptedModel(shared_base("bert", "SEQ_CLS"))
    with pytest.raises(PromptError, match="for CAUSAL_LM, but the base is a model for SEQ_CLS"):
        model.add_prompt("a", kind_config("P_TUNING", 2, task_type="CAUSAL_LM"))
    bare = PromptedModel(shared_base("bert", "FEATURE_EXTRACTION"))
    with pytest.raises(PromptError, match="BertModel has no head for SEQ_CLS"):
        bare.add_prompt("a", kind_config("P_TUNING", 2, task_type="SEQ_CLS"))
    assert not len(bare.prompts)
    assert not len(model.prompts)
