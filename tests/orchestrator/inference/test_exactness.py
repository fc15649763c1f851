"""Every fast path of classify, score and embed against rows run alone by transformers and by PEFT.

Prompts first, between texts, last, split in two, and in a chat; several rows each, some of which
open alike; with the prompts' keys and values held, packed anew, and held in turns for want of room.
"""

import copy
import itertools
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from encoders.config import PromptTuningConfig
from encoders.formats.peft_format import save_adapter
from encoders.modules.prompt_embedding import PromptEmbedding
from encoders.packed.head_cache import bytes_per_position
from encoders.packed.packed_attention import PACKED
from encoders.packed.packed_model import PackedModel
from encoders.packed.packing import PackedRow
from encoders.packed.padded_model import PaddedModel
from encoders.prompted.prompted_model import PromptedModel
from encoders.text.tokenization import TextTokenizer
from orchestrator.artifacts.artifact_store import ArtifactStore
from orchestrator.domain.batch import BatchMode
from orchestrator.inference.predictor import Predictor, Query
from orchestrator.inference.ranking import CONTENT_FREE
from orchestrator.inference.served_prompt import ServedPrompt
from tests.encoders.conftest import make_model, plain_log_probs
from tests.orchestrator.inference.conftest import MAX_LENGTH, MakeVersion

WIDTH = 64
SIZES: dict[str, dict[str, Any]] = {
    "llama": {"vocab_size": 384, "hidden_size": WIDTH, "max_position_embeddings": MAX_LENGTH},
    "qwen3": {"vocab_size": 384, "hidden_size": WIDTH, "max_position_embeddings": MAX_LENGTH},
    "gpt2": {"vocab_size": 384, "n_embd": WIDTH, "n_positions": MAX_LENGTH},
}
TEMPLATES = {
    "first": "{prompt:4}{word}: {colour}",
    "fixed": "{prompt:4}The colour of the word {word} is {colour}",
    "middle": "The word {prompt:4} is {word}: {colour}",
    "last": "{word}:{prompt:4} {colour}",
    "split": "{prompt:2}a {word} is{prompt:2} {colour}",
    "bare": "{prompt:4}{colour}",
}
FIRST = ("first", "fixed", "bare", "ending")  # as PEFT has it
WORDS = ("a1", "b22", "a", "longer word", "longer words", "longer word still", "zz", "a1")
#: Room for all prompts; for none; for two of them at a time.
ROOMS = {"held": 1 << 30, "packed": 0, "in turns": None}

Bases = Callable[[str], Any]


@pytest.fixture(scope="module")
def base() -> Bases:
    made: dict[str, Any] = {}

    def get(name: str) -> Any:
        if name not in made:
            made[name] = make_model(name, **SIZES[name])
        made[name].set_attn_implementation("eager")
        return made[name]

    return get


@pytest.fixture(scope="module")
def prompts(
    make_version: MakeVersion, store: ArtifactStore, tokenizer: TextTokenizer
) -> dict[str, ServedPrompt]:
    candidates = ("red", "blue", "b", "reddish")
    versions = {
        name: make_version(name, template=template, candidates=candidates)
        for name, template in TEMPLATES.items()
    }
    chat = {"before": "<user>", "after": "</user>"}
    versions["chat"] = make_version(
        "chat", template="{prompt:4}What is {word}? {colour}", candidates=candidates, chat=chat
    )
    versions["ending"] = make_version(
        "ending", template=TEMPLATES["first"], candidates=candidates, ends_answer=True
    )
    return {
        name: ServedPrompt.load(version, store, tokenizer, MAX_LENGTH)
        for name, version in versions.items()
    }


@pytest.fixture(scope="module")
def queries(prompts: Mapping[str, ServedPrompt]) -> list[Query]:
    return [
        Query(name, prompt.encode({"word": word}))
        for word in WORDS
        for name, prompt in prompts.items()
    ]


def make_predictor(
    base: Any, tokenizer: TextTokenizer, prompts: Mapping[str, ServedPrompt], room: int | None
) -> Predictor:
    base.set_attn_implementation(PACKED)
    model = PackedModel(base)
    most = sorted(len(prompt.opening) for prompt in prompts.values())[-2:]
    room = sum(most) * bytes_per_position(model) if room is None else room
    return Predictor(model, tokenizer, prompts, held_bytes=room, max_positions=150)


def alone(base: Any, prompts: Mapping[str, ServedPrompt], query: Query) -> Tensor:
    """Log-probabilities of the candidates after one row, by transformers."""
    prompt = prompts[query.prompt]
    row = PackedRow(query.prompt, query.context, prompt.candidate_ids)
    tokens = {query.prompt: prompt.virtual_tokens}
    return plain_log_probs(base, [row], tokens).detach()


@pytest.mark.parametrize("room", ROOMS)
@pytest.mark.parametrize("name", SIZES)
def test_candidates_shares_equal_those_of_rows_run_alone(
    base: Bases,
    tokenizer: TextTokenizer,
    prompts: dict[str, ServedPrompt],
    queries: list[Query],
    name: str,
    room: str,
) -> None:
    expected = [alone(base(name), prompts, query).softmax(0) for query in queries]
    predictor = make_predictor(base(name), tokenizer, prompts, ROOMS[room])
    for query, answer, shares in zip(queries, predictor.answer(queries), expected, strict=True):
        candidates = prompts[query.prompt].candidates
        assert answer.scores == pytest.approx(
            dict(zip(candidates, shares.tolist(), strict=True)), abs=1e-5
        )
        assert answer.text == candidates[int(shares.argmax())]
        assert answer.score == max(answer.scores.values())
        assert answer.num_tokens == 0


@pytest.mark.parametrize("room", ROOMS)
def test_scores_equal_those_of_rows_run_alone(
    base: Bases,
    tokenizer: TextTokenizer,
    prompts: dict[str, ServedPrompt],
    queries: list[Query],
    room: str,
) -> None:
    given = [("red", "purple rain"), ("é",), (), ("x", "xyz", "x")]
    asked = [
        Query(query.prompt, query.context, answers)
        for query, answers in zip(queries, itertools.cycle(given), strict=False)
    ]
    model = base("llama")
    expected: list[dict[str, float]] = []
    for query in asked:
        prompt = prompts[query.prompt]
        answers = tuple(dict.fromkeys(query.answers or prompt.candidates))
        ids = tuple(prompt.encode_answer(query.context, text) for text in answers)
        tokens = {query.prompt: prompt.virtual_tokens}
        row = PackedRow(query.prompt, query.context, ids)
        scores = plain_log_probs(model, [row], tokens).tolist()
        expected.append(dict(zip(answers, scores, strict=True)))
    predictor = make_predictor(model, tokenizer, prompts, ROOMS[room])
    for answer, scores_ in zip(predictor.answer(asked, BatchMode.SCORE), expected, strict=True):
        assert answer.scores == pytest.approx(scores_, abs=1e-4)
        assert (answer.text, answer.score) == (None, None)


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("room", ROOMS)
def test_embeddings_equal_transformers_last_hidden_state(
    base: Bases,
    tokenizer: TextTokenizer,
    prompts: dict[str, ServedPrompt],
    queries: list[Query],
    name: str,
    room: str,
) -> None:
    model = base(name)
    expected = [_last_hidden(model, prompts[query.prompt], query) for query in queries]
    predictor = make_predictor(model, tokenizer, prompts, ROOMS[room])
    found = predictor.answer(queries, BatchMode.EMBED)
    assert all(answer.embedding is not None for answer in found)
    tensor = torch.tensor([answer.embedding for answer in found])
    assert torch.allclose(tensor, torch.stack(expected), atol=1e-5)


@torch.no_grad()
def _last_hidden(model: Any, prompt: ServedPrompt, query: Query) -> Tensor:
    output = model(
        inputs_embeds=_embedded(model, prompt, query.context),
        output_hidden_states=True,
        use_cache=False,
    )
    hidden: Tensor = output.hidden_states[-1][0, -1]
    return hidden


def _embedded(model: Any, prompt: ServedPrompt, context: tuple[int, ...]) -> Tensor:
    table = model.get_input_embeddings().weight
    rows = [table[i] if i >= 0 else prompt.virtual_tokens[-i - 1] for i in context]
    return torch.stack(rows)[None]


def test_calibration_divides_by_the_shares_without_content(
    base: Bases, tokenizer: TextTokenizer, prompts: dict[str, ServedPrompt], queries: list[Query]
) -> None:
    model = base("llama")
    expected: list[Tensor] = []
    for query in queries:
        prompt = prompts[query.prompt]
        free = [
            Query(query.prompt, prompt.encode(dict.fromkeys(("word",), value)))
            for value in CONTENT_FREE
        ]
        without = sum(alone(model, prompts, each).double().softmax(0) for each in free) / len(free)
        ratios = alone(model, prompts, query).double().softmax(0) / without
        expected.append(ratios / ratios.sum())
    predictor = make_predictor(model, tokenizer, prompts, ROOMS["held"])
    found = predictor.answer(queries, calibrate=True)
    for query, answer, shares in zip(queries, found, expected, strict=True):
        assert answer.scores is not None
        assert list(answer.scores.values()) == pytest.approx(shares.tolist(), abs=1e-5)
        assert answer.text == prompts[query.prompt].candidates[int(shares.argmax())]
    plain = predictor.answer(queries)
    assert any(one.text != other.text for one, other in zip(found, plain, strict=True))


def test_a_base_that_runs_padded_gives_the_same(
    base: Bases, tokenizer: TextTokenizer, prompts: dict[str, ServedPrompt], queries: list[Query]
) -> None:
    model = base("llama")
    expected = [alone(model, prompts, query).softmax(0) for query in queries]
    predictor = Predictor(PaddedModel(model), tokenizer, prompts)
    for answer, shares in zip(predictor.answer(queries), expected, strict=True):
        assert answer.scores is not None
        assert list(answer.scores.values()) == pytest.approx(shares.tolist(), abs=1e-5)
    assert "it was asked for" in predictor.plan_note


def test_shares_equal_real_peft_adapters_exported_from_the_same_versions(
    base: Bases,
    tokenizer: TextTokenizer,
    prompts: dict[str, ServedPrompt],
    queries: list[Query],
    tmp_path: Path,
) -> None:
    peft = pytest.importorskip("peft")
    for name in FIRST:
        save_adapter(tmp_path / name, *_module(prompts[name]))
    own = copy.deepcopy(base("llama"))  # PEFT wraps it
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.PeftModel.from_pretrained(own, tmp_path / FIRST[0], FIRST[0])
        for name in FIRST[1:]:
            model.load_adapter(tmp_path / name, name)

    def logits(name: str, ids: Tensor) -> Tensor:
        model.set_adapter(name)
        found: Tensor = model(input_ids=ids).logits
        return found

    check_against(logits, base("llama"), tokenizer, prompts, queries)


def test_shares_equal_a_prompted_model_row_by_row(
    base: Bases, tokenizer: TextTokenizer, prompts: dict[str, ServedPrompt], queries: list[Query]
) -> None:
    model = PromptedModel(base("gpt2"))
    for name in FIRST:
        model.add_prompt(name, _module(prompts[name])[1])

    def logits(name: str, ids: Tensor) -> Tensor:
        found: Tensor = model(ids, prompts=[name]).logits
        return found

    check_against(logits, base("gpt2"), tokenizer, prompts, queries)


@torch.no_grad()
def check_against(
    logits: Callable[[str, Tensor], Tensor],
    base: Any,
    tokenizer: TextTokenizer,
    prompts: Mapping[str, ServedPrompt],
    queries: list[Query],
) -> None:
    """The predictor's shares equal those of `logits` [1, *, vocabulary] of a prompt's name and ids
    [1, T], run once for each row and candidate."""
    asked = [query for query in queries if query.prompt in FIRST and query.context[-1] >= 0]
    expected: list[list[float]] = []
    for query in asked:
        text = [token for token in query.context if token >= 0]
        scores: list[float] = []
        for ids in prompts[query.prompt].candidate_ids:
            found = logits(query.prompt, torch.tensor([[*text, *ids]]))[0, -len(ids) - 1 : -1]
            picked = found.log_softmax(-1)[torch.arange(len(ids)), torch.tensor(ids)]
            scores.append(float(picked.sum()))
        expected.append(torch.tensor(scores).softmax(0).tolist())
    predictor = make_predictor(base, tokenizer, prompts, ROOMS["held"])
    for answer, shares in zip(predictor.answer(asked), expected, strict=True):
        assert answer.scores is not None
        assert list(answer.scores.values()) == pytest.approx(shares, abs=1e-5)


def _module(prompt: ServedPrompt) -> tuple[PromptTuningConfig, PromptEmbedding]:
    num_virtual_tokens, token_dim = prompt.virtual_tokens.shape
    config = PromptTuningConfig(
        task_type="CAUSAL_LM",
        num_virtual_tokens=num_virtual_tokens,
        token_dim=token_dim,
        num_transformer_submodules=1,
        inference_mode=True,
    )
    module = PromptEmbedding(config)
    module.embedding.weight.data.copy_(prompt.virtual_tokens)
    return config, module
