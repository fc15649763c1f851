from typing import Any

import pytest
import torch
from torch import Tensor, nn

from encoders.config import PrefixTuningConfig, PromptEncoderConfig, PromptLearningConfig
from encoders.errors import ConfigError, PromptError
from encoders.modules.deep_prompt_encoder import DeepPromptEncoderConfig
from encoders.modules.prefix_encoder import PrefixEncoder
from encoders.modules.prompt_factory import get_prompt_encoder
from encoders.modules.task_conditioned_encoder import TaskConditionedEncoderConfig
from encoders.prompted.prompted_model import PromptedModel
from tests.encoders.tiny_models import KINDS, difference, kind_config, shared_base

NAME = "a.name with/signs — and ünicode"


class Constant(nn.Module):
    """Someone's own module of virtual tokens."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(shape))

    def virtual_tokens(self) -> Tensor:
        return self.weight * 2


def counts(model: PromptedModel, *arguments: Any, **options: Any) -> tuple[int, int, int]:
    """Encoder's and decoder's tokens and prefix slots of a prompt attached to `model`."""
    prompt = model.add_prompt(f"prompt {len(model.prompts)}", *arguments, **options)
    return prompt.num_encoder_tokens, prompt.num_decoder_tokens, prompt.num_prefix


@pytest.mark.parametrize("kind", KINDS)
def test_a_config_is_completed_from_the_base(kind: str) -> None:
    model = PromptedModel(shared_base("llama"))
    config = kind_config(kind, 3)
    prompt = model.add_prompt(NAME, config)
    assert prompt.config.token_dim == (16 if kind == "PREFIX_TUNING" else 32)
    assert prompt.config.num_layers == 2
    assert config.num_layers is None
    assert model.prompts[NAME] is prompt
    assert list(model.prompts) == [NAME]
    assert NAME in model.prompts


def test_tables_are_divided_by_submodules_on_encoder_decoders_alone() -> None:
    decoder, both = (PromptedModel(shared_base(*each)) for each in _BASES)
    two = kind_config("PROMPT_TUNING", 3, num_transformer_submodules=2)
    assert counts(decoder, two) == (6, 0, 0)
    assert counts(both, two) == (3, 3, 0)
    assert counts(both, two, peft_layout=True) == (3, 0, 0)
    assert counts(both, kind_config("PROMPT_TUNING", 3, num_transformer_submodules=1)) == (3, 0, 0)
    assert counts(both, kind_config("PROMPT_TUNING", 3, task_type="SEQ_2_SEQ_LM")) == (3, 3, 0)
    tasks = kind_config("MULTITASK_PROMPT_TUNING", 3, task_type="SEQ_2_SEQ_LM")
    assert counts(both, tasks, peft_layout=True) == (3, 3, 0)
    assert counts(both, kind_config("PREFIX_TUNING", 3, task_type="SEQ_2_SEQ_LM")) == (0, 0, 3)


_BASES = (("llama", "CAUSAL_LM"), ("t5", "SEQ_2_SEQ_LM"))


def test_any_module_that_gives_virtual_tokens_is_a_prompt() -> None:
    model = PromptedModel(shared_base("llama"))
    assert counts(model, Constant(5, 32)) == (5, 0, 0)
    assert counts(model, DeepPromptEncoderConfig(4, 32)) == (4, 0, 0)
    config = PromptLearningConfig(num_virtual_tokens=2)
    assert counts(model, config, Constant(2, 32)) == (2, 0, 0)
    sizes = PrefixTuningConfig(num_virtual_tokens=4).completed(model.base.config)
    assert counts(model, PrefixEncoder(sizes)) == (0, 0, 4)
    ids = torch.tensor([[5, 6]])
    text = model.base.get_input_embeddings()(ids)
    expected = model.base(inputs_embeds=torch.cat([torch.full((1, 5, 32), 2.0), text], 1)).logits
    assert difference(model(input_ids=ids, prompts="prompt 0").logits, expected[:, 5:]) < 1e-5


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (Constant(5, 31), "virtual tokens of size 31, but the base embeds in 32: it is a prompt"),
        (Constant(5), "gives no table"),
        (Constant(0, 32), "gives no table"),
        (nn.Linear(2, 2), r"is a Linear, whose virtual_tokens\(\) gives no table"),
        (TaskConditionedEncoderConfig(4, 32), "gives no table"),
        (kind_config("P_TUNING", 2, token_dim=16), "virtual tokens of size 16"),
        (kind_config("PREFIX_TUNING", 2, num_layers=3), "prefix of another base"),
        (kind_config("PREFIX_TUNING", 2, task_type="SEQ_CLS"), "is for SEQ_CLS, but the base is"),
    ],
)
def test_a_prompt_that_does_not_fit_the_base_is_refused(prompt: Any, message: str) -> None:
    model = PromptedModel(shared_base("llama"))
    with pytest.raises(PromptError, match=message):
        model.add_prompt("a", prompt)
    assert len(model.prompts) == 0


def test_what_is_no_prompt_is_refused() -> None:
    model = PromptedModel(shared_base("llama"))
    with pytest.raises(ConfigError, match="no prompt module for a str"):
        model.add_prompt("a", "P_TUNING")
    with pytest.raises(ConfigError, match="num_virtual_tokens is missing"):
        model.add_prompt("a", PromptEncoderConfig())


def test_attaching_draws_what_making_the_module_draws() -> None:
    model = PromptedModel(shared_base("llama")).train()
    config = kind_config("P_TUNING", 3, encoder_reparameterization_type="LSTM", encoder_dropout=0.5)
    torch.manual_seed(0)
    expected = get_prompt_encoder(config.completed(model.base.config)).state_dict()
    later = torch.rand(1)
    torch.manual_seed(0)
    found = model.add_prompt("a", config).encoder.state_dict()
    assert all(torch.equal(found[name], each) for name, each in expected.items())
    assert torch.equal(torch.rand(1), later)


@pytest.mark.parametrize("name", ["", "two\nlines", 3, None])
def test_a_name_is_printable_text(name: Any) -> None:
    model = PromptedModel(shared_base("llama"))
    with pytest.raises(PromptError, match="not allowed; it must be printable text"):
        model.add_prompt(name, Constant(2, 32))


def test_a_name_is_taken_once() -> None:
    model = PromptedModel(shared_base("llama"))
    model.add_prompt(NAME, Constant(2, 32))
    with pytest.raises(PromptError, match="already; remove it first"):
        model.add_prompt(NAME, Constant(3, 32))
    model.remove_prompt(NAME)
    assert NAME not in model.prompts
    assert model.add_prompt(NAME, Constant(3, 32)).num_encoder_tokens == 3


@pytest.mark.parametrize("name", [NAME, "forward", "training", "a.encoder", "a%2Eencoder"])
def test_names_are_data_and_state_dicts_hold_them(name: str) -> None:
    one, other = (PromptedModel(shared_base("llama")) for _ in range(2))
    for model in (one, other):
        for each in ("a", name):
            model.add_prompt(each, Constant(2, 32))
    nn.init.normal_(one.prompts[name].encoder.weight)
    other.prompts.load_state_dict(one.prompts.state_dict())
    assert torch.equal(other.prompts[name].encoder.weight, one.prompts[name].encoder.weight)
    assert not torch.equal(other.prompts["a"].encoder.weight, one.prompts[name].encoder.weight)
    one.remove_prompt("a")
    ids = torch.tensor([[5, 6]])
    assert torch.equal(one(input_ids=ids).logits, other(input_ids=ids, prompts=name).logits)
