import pytest
import torch
from torch import nn

import encoders
from encoders.errors import ConfigError
from encoders.modules.prompt_factory import get_prompt_encoder

SIZES = {"num_virtual_tokens": 3, "token_dim": 4}


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        (encoders.PromptEncoderConfig(**SIZES), encoders.PromptEncoder),
        (encoders.PrefixTuningConfig(**SIZES, num_layers=2), encoders.PrefixEncoder),
        (encoders.PromptTuningConfig(**SIZES), encoders.PromptEmbedding),
        (encoders.MultitaskPromptTuningConfig(**SIZES), encoders.MultitaskPromptEmbedding),
        (encoders.DeepPromptEncoderConfig(**SIZES), encoders.DeepPromptEncoder),
        (encoders.TaskConditionedEncoderConfig(**SIZES), encoders.TaskConditionedEncoder),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_config_gives_its_own_module(config: object, kind: type[nn.Module]) -> None:
    assert type(get_prompt_encoder(config)) is kind


def test_a_dict_with_a_peft_type_becomes_a_module() -> None:
    config = encoders.get_peft_config({"peft_type": "P_TUNING", **SIZES})
    assert isinstance(get_prompt_encoder(config), encoders.PromptEncoder)


def test_word_embeddings_reach_the_module_that_starts_from_them() -> None:
    config = encoders.PromptTuningConfig(**SIZES, prompt_tuning_init="SAMPLE_VOCAB")
    base = nn.Embedding(1, 4)
    prompt = get_prompt_encoder(config, base)
    assert isinstance(prompt, encoders.PromptEmbedding)
    assert torch.equal(prompt.virtual_tokens(), base.weight.expand(3, 4))


@pytest.mark.parametrize("config", [None, {}, "MLP", encoders.PeftConfig()], ids=str)
def test_anything_else_is_refused(config: object) -> None:
    with pytest.raises(ConfigError, match="no prompt module for a"):
        get_prompt_encoder(config)
