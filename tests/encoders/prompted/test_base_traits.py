from typing import Any

import pytest
import torch

from encoders.config import TaskType
from encoders.errors import PromptError
from encoders.prompted.base_traits import read_traits
from encoders.prompted.prompted_model import PromptedModel
from tests.encoders.tiny_models import CAUSAL, ENCODERS, SEQ2SEQ, make_base, shared_base, unchanged


@pytest.mark.parametrize("architecture", [*CAUSAL, *ENCODERS, *SEQ2SEQ, "mpt", "distilbert"])
def test_bases_are_causal_bidirectional_or_both(architecture: str) -> None:
    traits = read_traits(shared_base(architecture, "FEATURE_EXTRACTION"))
    assert traits.is_causal == (architecture in (*CAUSAL, "mpt"))
    assert traits.is_encoder_decoder == (architecture in SEQ2SEQ)
    assert traits.task_type is None


@pytest.mark.parametrize("task", ["CAUSAL_LM", "SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_the_class_names_the_task(architecture: str, task: str) -> None:
    assert read_traits(shared_base(architecture, task)).task_type is TaskType(task)


def test_conditional_generation_is_sequence_to_sequence() -> None:
    assert read_traits(shared_base("t5", "SEQ_2_SEQ_LM")).task_type is TaskType.SEQ_2_SEQ_LM
    assert read_traits(shared_base("bert", "MASKED_LM")).task_type is None


def test_only_roberta_counts_positions_from_after_its_padding() -> None:
    first = {each: read_traits(shared_base(each, "MASKED_LM")).first_position for each in ENCODERS}
    assert first == {"bert": 0, "roberta": 2}


def test_arguments_are_the_backbones_too_where_they_are_handed_on() -> None:
    accepts = read_traits(shared_base("bert", "SEQ_CLS")).accepts
    assert {"position_ids", "past_key_values", "labels"} <= accepts
    assert "past_key_values" not in read_traits(shared_base("distilbert", "SEQ_CLS")).accepts


def test_decoders_classify_at_the_last_slot() -> None:
    found = {
        name: read_traits(shared_base(name, "SEQ_CLS")).classifies_last
        for name in ("llama", "gpt2", "mpt", "bert", "distilbert")
    }
    assert found == {"llama": True, "gpt2": True, "mpt": True, "bert": False, "distilbert": False}


def test_tables_of_positions_have_a_length() -> None:
    found = {
        name: read_traits(shared_base(name, "FEATURE_EXTRACTION")).max_positions
        for name in ("llama", "t5", "gpt2", "bert", "roberta", "bart")
    }
    lengths = {"gpt2": 64, "bert": 64, "roberta": 62, "bart": 64}
    assert found == {"llama": None, "t5": None, **lengths}


def test_a_base_that_scales_embeddings_of_ids_alone_is_refused() -> None:
    """PEFT runs it, with unscaled texts."""
    with pytest.raises(PromptError, match="PegasusForConditionalGeneration .* scales only the"):
        PromptedModel(make_base("pegasus", "SEQ_2_SEQ_LM"))
    with unchanged(plain := make_base("pegasus", "SEQ_2_SEQ_LM", scale_embedding=False)):
        PromptedModel(plain)


def test_a_base_that_takes_no_embeddings_is_refused() -> None:
    with pytest.raises(PromptError, match="BartForSequenceClassification cannot run with prompts"):
        PromptedModel(make_base("bart", "SEQ_CLS"))


@pytest.mark.parametrize("is_training", [True, False])
def test_looking_at_a_base_leaves_it_as_it_is(is_training: bool) -> None:
    base: Any = make_base("gpt2").train(is_training)
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    with unchanged(base.requires_grad_(False)):
        PromptedModel(base)
    assert torch.equal(torch.rand(1), expected)


def test_a_base_without_weights_yet_is_taken_as_it_is() -> None:
    with torch.device("meta"):
        base = make_base("llama")
    assert PromptedModel(base).traits.is_causal
