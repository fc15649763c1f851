"""Versions' greedy answers, all versions at once, against real PEFT adapters written from the same
versions and against PromptedModel, one row at a time."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from encoders import PromptedModel, PromptTuningConfig
from encoders.formats.peft_format import Adapter, write_adapter
from encoders.packed.packed_model import PackedModel
from encoders.text.tokenization import TextTokenizer
from orchestrator.artifacts.artifact_store import ArtifactStore
from orchestrator.inference.predictor import Predictor
from orchestrator.inference.query import Query
from orchestrator.inference.served_prompt import ServedPrompt
from tests.orchestrator.inference.conftest import MAX_LENGTH, WIDTH, Base, MakeVersion

peft = pytest.importorskip("peft")

WORDS = ("a1", "b22", "a", "longer word", "zz top")
NAMES = ("one", "two", "three")
NUM_NEW = 8


@pytest.fixture(scope="module")
def prompts(
    make_version: MakeVersion, store: ArtifactStore, tokenizer: TextTokenizer
) -> dict[str, ServedPrompt]:
    template = "{prompt:4}{word}: {colour}"
    versions = [
        make_version(name, candidates=None, template=template, max_answer_tokens=NUM_NEW)
        for name in NAMES
    ]
    return {each.ref: ServedPrompt.load(each, store, tokenizer, MAX_LENGTH) for each in versions}


@pytest.fixture(scope="module")
def queries(prompts: dict[str, ServedPrompt]) -> list[Query]:
    return [
        Query(ref, prompt.encode({"word": word}))
        for word in WORDS
        for ref, prompt in prompts.items()
    ]


@pytest.fixture(scope="module")
def folder(bases: tuple[Base, Base], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base with a head of its own: one whose head is its embeddings repeats what it hears."""
    config = AutoConfig.from_pretrained(bases[0].folder, tie_word_embeddings=False)
    folder = tmp_path_factory.mktemp("untied")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def answers(
    folder: Path,
    tokenizer: TextTokenizer,
    prompts: dict[str, ServedPrompt],
    queries: list[Query],
) -> list[str | None]:
    predictor = Predictor(PackedModel.load(folder), tokenizer, prompts)
    return [each.text for each in predictor.answer(queries)]


@pytest.fixture
def base(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def said_by(model: Any, tokenizer: TextTokenizer, query: Query, **arguments: Any) -> str:
    """A model's own `generate` after the text of a query, whose virtual tokens it puts first."""
    ids = torch.tensor([[token for token in query.context if token >= 0]])
    with torch.no_grad():
        said = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=NUM_NEW,
            do_sample=False,
            pad_token_id=0,
            **arguments,
        )
    new = said[0, ids.shape[1] :].tolist()
    return tokenizer.decode([token for token in new if token != tokenizer.eos_token_id]).strip()


def test_answers_equal_peft_adapters_of_the_same_versions(
    base: Any,
    tokenizer: TextTokenizer,
    prompts: dict[str, ServedPrompt],
    queries: list[Query],
    answers: list[str | None],
    tmp_path: Path,
) -> None:
    config = PromptTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=4,
        token_dim=WIDTH,
        num_layers=2,
        num_attention_heads=4,
        num_transformer_submodules=1,
    )
    model: Any = None
    for ref, prompt in prompts.items():
        adapter = tmp_path / prompt.version.task
        write_adapter(adapter, Adapter(config, {"prompt_embeddings": prompt.virtual_tokens}, {}))
        name = ref.replace("@", "-")
        if model is None:
            model = peft.PeftModel.from_pretrained(base, adapter, adapter_name=name)
        else:
            model.load_adapter(adapter, adapter_name=name)
    expected = []
    for query in queries:
        model.set_adapter(query.prompt.replace("@", "-"))
        expected.append(said_by(model, tokenizer, query))
    assert answers == expected
    assert len(set(expected)) > len(NAMES)


def test_answers_equal_a_prompted_model(
    base: Any,
    tokenizer: TextTokenizer,
    prompts: dict[str, ServedPrompt],
    queries: list[Query],
    answers: list[str | None],
) -> None:
    model = PromptedModel(base).eval()
    for ref, prompt in prompts.items():
        model.add_prompt(ref, _Table(prompt.virtual_tokens))
    expected = [said_by(model, tokenizer, query, prompts=query.prompt) for query in queries]
    assert answers == expected


class _Table(nn.Module):
    """Given virtual tokens as a prompt."""

    def __init__(self, virtual_tokens: torch.Tensor) -> None:
        super().__init__()
        self.table = nn.Parameter(virtual_tokens.clone())

    def virtual_tokens(self) -> torch.Tensor:
        return self.table
