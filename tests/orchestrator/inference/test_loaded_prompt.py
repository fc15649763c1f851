"""A loaded prompt gives on any base what its version was trained for, or says that it cannot."""

from datetime import UTC, datetime
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from encoders import PromptedModel, embed_rows
from encoders.text.tokenization import TextTokenizer
from orchestrator.artifacts.artifact_store import ArtifactStore
from orchestrator.domain.errors import IntegrityError, InvalidInput
from orchestrator.domain.prompt_version import PromptVersion
from orchestrator.inference.loaded_prompt import LoadedPrompt
from tests.orchestrator.inference.conftest import WIDTH, Base, MakeVersion

FIRST = "{prompt:3}{prompt:1}{word}: {colour}"
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def load(version: PromptVersion, store: ArtifactStore) -> LoadedPrompt:
    weights = store.get_bytes(version.artifacts["prompt_embeddings"].digest)
    return LoadedPrompt.read(version, weights, NOW)


@pytest.fixture(scope="module")
def base(bases: tuple[Base, Base]) -> Any:
    return AutoModelForCausalLM.from_pretrained(bases[0].folder, dtype=torch.float32).eval()


def test_a_prompt_that_stands_first_runs_in_a_prompted_model(
    make_version: MakeVersion, store: ArtifactStore, tokenizer: TextTokenizer, base: Any
) -> None:
    prompt = load(make_version(template=FIRST), store)
    model = PromptedModel(base).eval()
    model.add_prompt(prompt.ref, prompt.module())
    (*virtual, _), ids = prompt.rows(tokenizer).encode_context({"word": "ab"}), "ab:"
    text = torch.tensor([tokenizer.encode(ids)])
    assert virtual[:4] == [-1, -2, -3, -4]
    with torch.no_grad():
        logits = model(input_ids=text).logits
        rows = torch.tensor([prompt.rows(tokenizer).encode_context({"word": "ab"})])
        embeds = embed_rows(rows, base.get_input_embeddings(), prompt.virtual_tokens)
        expected = base(inputs_embeds=embeds).logits[:, 4:]
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-4)
    assert list(model.trainable_parameters()) == []


def test_text_before_the_prompt_is_refused_by_name_and_runs_by_its_rows(
    make_version: MakeVersion, store: ArtifactStore, tokenizer: TextTokenizer, base: Any
) -> None:
    prompt = load(make_version(), store)
    with pytest.raises(InvalidInput, match=r"(?s)colour@1 was trained as '\{word\}:.*embed_rows"):
        prompt.module()
    ids = torch.tensor([prompt.rows(tokenizer).encode_context({"word": "ab"})])
    embeds = embed_rows(ids, base.get_input_embeddings(), prompt.virtual_tokens)
    assert torch.equal(embeds[0, -4:], prompt.virtual_tokens)
    said = base.generate(inputs_embeds=embeds, max_new_tokens=3, do_sample=False, pad_token_id=0)
    assert said.shape[1] <= 3


@pytest.mark.parametrize(
    ("template", "config"),
    [
        ("{prompt:2}{word}{prompt:2} {colour}", {}),
        (FIRST, {"chat": {"before": "<extra_id_0>user:", "after": "<extra_id_1>"}}),
    ],
)
def test_a_prompt_that_is_divided_or_in_a_chat_does_not_stand_first(
    make_version: MakeVersion, store: ArtifactStore, template: str, config: dict[str, Any]
) -> None:
    with pytest.raises(InvalidInput, match="PromptedModel puts them first"):
        load(make_version(template=template, **config), store).module()


def test_a_module_is_a_copy_and_draws_no_random_numbers(
    make_version: MakeVersion, store: ArtifactStore
) -> None:
    prompt = load(make_version(template=FIRST), store)
    state = torch.get_rng_state()
    module = prompt.module()
    assert torch.equal(torch.get_rng_state(), state)
    table = module.virtual_tokens()
    assert (table.shape, table.requires_grad) == ((4, WIDTH), False)
    table.zero_()
    assert prompt.virtual_tokens.abs().sum() > 0


def test_it_says_what_it_is(make_version: MakeVersion, store: ArtifactStore) -> None:
    prompt = load(make_version(), store)
    assert (prompt.ref, prompt.checked_at) == ("colour@1", NOW)
    assert prompt.config["candidates"] == ["red", "blue"]
    assert prompt.template.fields == ("word",)
    assert prompt.virtual_tokens.dtype == torch.float32


def test_a_length_that_the_version_and_the_base_give_is_the_shorter(
    make_version: MakeVersion, store: ArtifactStore, tokenizer: TextTokenizer
) -> None:
    prompt = load(make_version(max_length=20, truncate="word"), store)
    assert prompt.rows(tokenizer).max_length == 20
    assert prompt.rows(tokenizer, 10).max_length == 10
    assert load(make_version(), store).rows(tokenizer).max_length is None


def test_weights_of_another_shape_are_no_prompt(
    make_version: MakeVersion, store: ArtifactStore
) -> None:
    version = make_version(num_virtual_tokens=5)
    with pytest.raises(IntegrityError, match="colour@1: prompt_embeddings: "):
        load(version, store)
