from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from encoders.errors import TemplateError, WeightsError
from encoders.files.weights_file import dump_tensors
from encoders.formats.prompt_embeds import (
    PromptEmbeds,
    export_prompt_embeds,
    load_prompt_embeds,
    make_prompt_embeds,
)
from encoders.formats.prompt_table import export_prompt_table, load_prompt_table
from encoders.text.template import Template
from tests.encoders.conftest import ARCHITECTURES, VOCABULARY, WIDTH, make_model

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`")  # PEFT's

Models = Callable[..., Any]
RUNNABLE = [name for name in ARCHITECTURES if name != "gpt_oss"]  # it has too few experts
TEXT = (5, 17, 3, 80, 9)


@pytest.fixture
def tokens() -> Tensor:
    return torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def logits(model: Any, embeds: Tensor) -> Tensor:
    result: Tensor = model(inputs_embeds=embeds[None], use_cache=False).logits[0]
    return result


def test_the_prompt_comes_first_and_the_text_follows(models: Models, tokens: Tensor) -> None:
    model = models("llama")
    embeds = make_prompt_embeds(model, tokens, TEXT)
    assert torch.equal(embeds[:4], tokens)
    assert torch.equal(embeds[4:], model.get_input_embeddings()(torch.tensor(TEXT)))
    assert not embeds.requires_grad


def test_a_template_puts_virtual_tokens_where_it_says(models: Models, tokens: Tensor) -> None:
    template = Template.parse("ab{prompt:3}c{prompt:1}d {answer}", "answer")
    ids = template.encode_context({}, lambda text: [ord(c) - 90 for c in text])
    embeds = make_prompt_embeds(models("llama"), tokens, ids)
    assert ids == (7, 8, -1, -2, -3, 9, -4, 10)
    assert torch.equal(embeds[[2, 3, 4, 6]], tokens)
    words = models("llama").get_input_embeddings()(torch.tensor([7, 8, 9, 10]))
    assert torch.equal(embeds[[0, 1, 5, 7]], words)


@pytest.mark.parametrize("name", RUNNABLE)
def test_exported_embeds_and_tables_give_the_logits_of_peft(
    tokens: Tensor, name: str, tmp_path: Path
) -> None:
    """As `inputs_embeds`, equal to the last bit to what PEFT's model says of the text."""
    peft = pytest.importorskip("peft")
    model = make_model(name)
    config = peft.PromptEncoderConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=4, token_dim=WIDTH, inference_mode=True
    )
    wrapped = peft.get_peft_model(model, config)
    wrapped.prompt_encoder["default"].embedding.weight.data.copy_(tokens)
    with torch.no_grad():
        expected = wrapped(input_ids=torch.tensor([TEXT])).logits[0]

    export_prompt_embeds(tmp_path / "a", {"row": make_prompt_embeds(model, tokens, TEXT)})
    found = load_prompt_embeds(tmp_path / "a").inputs["row"]
    assert torch.equal(logits(model, found), expected)
    export_prompt_table(tmp_path / "a.npy", {"other": torch.ones(6, WIDTH), "task": tokens})
    table = load_prompt_table(tmp_path / "a.npy").virtual_tokens("task")
    words = model.get_input_embeddings()(torch.tensor(TEXT))
    assert torch.equal(logits(model, torch.cat([table, words])), expected)


def test_embeds_have_the_dtype_of_the_base(models: Models, tokens: Tensor) -> None:
    embeds = make_prompt_embeds(models("llama", torch.bfloat16), tokens, TEXT)
    assert embeds.dtype is torch.bfloat16
    assert torch.equal(embeds[:4], tokens.bfloat16())


@pytest.mark.parametrize("ids", [(VOCABULARY,), (-5,), (-1, 2**40), (-(2**40),)])
def test_ids_that_do_not_fit_are_refused(
    models: Models, tokens: Tensor, ids: tuple[int, ...]
) -> None:
    with pytest.raises(TemplateError, match=f"allowed are -4 to {VOCABULARY - 1}"):
        make_prompt_embeds(models("llama"), tokens, ids)


@pytest.mark.parametrize("shape", [(4, WIDTH + 1), (WIDTH,), (0, WIDTH), (1, 4, WIDTH)])
def test_virtual_tokens_that_do_not_fit_the_base_are_refused(
    models: Models, shape: tuple[int, ...]
) -> None:
    with pytest.raises(WeightsError, match=rf"the base needs \[V, {WIDTH}\]"):
        make_prompt_embeds(models("llama"), torch.ones(shape), TEXT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_inputs_of_any_length_come_back_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    inputs = {"../a": torch.randn(3, 5).to(dtype), "b": torch.randn(1, 5).to(dtype)}
    export_prompt_embeds(tmp_path / "a", inputs)
    for found in (load_prompt_embeds(tmp_path / "a").inputs, load_file(tmp_path / "a")):
        assert found.keys() == inputs.keys()
        assert all(torch.equal(found[name], inputs[name]) for name in inputs)
        assert all(found[name].dtype is dtype for name in inputs)


NO_INPUTS: list[tuple[dict[str, Tensor], str]] = [
    ({}, "inputs .* are needed"),
    ({"a": torch.ones(3)}, "inputs .* are needed"),
    ({"a": torch.ones(1, 2, 3)}, "inputs .* are needed"),
    ({"a": torch.ones(0, 3)}, "inputs .* are needed"),
    ({"a": torch.ones(2, 3), "b": torch.ones(2, 4)}, "inputs .* are needed"),
    ({"a": torch.ones(2, 3), "b": torch.ones(2, 3).half()}, "inputs .* are needed"),
    ({"a": torch.ones(2, 3).double()}, "inputs .* are needed"),
    ({"a": torch.ones(2, 3).long()}, "inputs .* are needed"),
    ({"a": torch.full((2, 3), torch.nan)}, "'a' holds NaN"),
]


@pytest.mark.parametrize(("inputs", "reason"), NO_INPUTS)
def test_inputs_that_do_not_fit_are_neither_written_nor_read(
    tmp_path: Path, inputs: dict[str, Tensor], reason: str
) -> None:
    with pytest.raises(WeightsError, match=reason):
        export_prompt_embeds(tmp_path / "a", inputs)
    assert not any(tmp_path.iterdir())
    (tmp_path / "a").write_bytes(dump_tensors(inputs, {"kind": "prompt_embeds"}))
    with pytest.raises(WeightsError, match=f"^{tmp_path / 'a'}: .*{reason}"):
        load_prompt_embeds(tmp_path / "a")


def test_a_file_that_does_not_say_what_it_holds_is_refused(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2, 3)}, tmp_path / "a")
    with pytest.raises(WeightsError, match="does not say that it holds prompt_embeds"):
        load_prompt_embeds(tmp_path / "a")
    with pytest.raises(WeightsError, match="inputs .* are needed"):
        PromptEmbeds({"a": torch.ones(3)})
