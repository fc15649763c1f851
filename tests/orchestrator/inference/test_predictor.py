"""The predictor against the plainest of loops on the same base."""

import pytest
import torch

from encoders.packed.packed_model import PackedModel
from encoders.packed.packing import PackedRow, pack
from encoders.text.tokenization import TextTokenizer
from orchestrator.artifacts.artifact_store import ArtifactStore
from orchestrator.domain.batch import BatchMode
from orchestrator.domain.errors import InvalidData, InvalidInput
from orchestrator.inference.predictor import Predictor, Query
from orchestrator.inference.served_prompt import ServedPrompt
from tests.orchestrator.inference.conftest import MAX_LENGTH, Base, MakeVersion

WORDS = ("a1", "b22", "a", "longer word", "b", "zz top", "a1")


@pytest.fixture(scope="module")
def model(bases: tuple[Base, Base]) -> PackedModel:
    return PackedModel.load(bases[0].folder)


@pytest.fixture(scope="module")
def prompts(
    make_version: MakeVersion, store: ArtifactStore, tokenizer: TextTokenizer
) -> dict[str, ServedPrompt]:
    versions = {
        "ranked": make_version("ranked", candidates=("red", "blue", "g")),
        "prefix": make_version("prefix", template="{prompt:4}{word}: {colour}"),
        "spoken": make_version("spoken", candidates=None),
        "spelled": make_version("spelled", candidates=None, max_answer_tokens=3),
    }
    return {
        key: ServedPrompt.load(version, store, tokenizer, MAX_LENGTH)
        for key, version in versions.items()
    }


@pytest.fixture(scope="module")
def queries(prompts: dict[str, ServedPrompt], tokenizer: TextTokenizer) -> list[Query]:
    """All prompts' rows, mixed."""
    return [
        Query(key, prompt.encode({"word": word}))
        for word in WORDS
        for key, prompt in prompts.items()
    ]


@pytest.fixture(scope="module")
def predictor(
    model: PackedModel, tokenizer: TextTokenizer, prompts: dict[str, ServedPrompt]
) -> Predictor:
    return Predictor(model, tokenizer, prompts)


@torch.no_grad()
def next_log_probs(
    model: PackedModel, prompt: ServedPrompt, context: tuple[int, ...]
) -> torch.Tensor:
    batch = pack([PackedRow("p", context)], {"p": 4})
    logits = model.logits(batch, {"p": prompt.virtual_tokens})
    return logits[0].log_softmax(-1)


def test_ranking_equals_a_plain_loop(
    predictor: Predictor,
    model: PackedModel,
    prompts: dict[str, ServedPrompt],
    queries: list[Query],
) -> None:
    ranked = [query for query in queries if prompts[query.prompt].candidates]
    for query, answer in zip(ranked, predictor.answer(ranked), strict=True):
        prompt, scores = prompts[query.prompt], []
        for ids in prompt.candidate_ids:
            scores.append(
                sum(
                    float(next_log_probs(model, prompt, query.context + ids[:i])[token])
                    for i, token in enumerate(ids)
                )
            )
        shares = torch.tensor(scores).softmax(0)
        assert answer.text == prompt.candidates[int(shares.argmax())]
        assert answer.score == pytest.approx(float(shares.max()), abs=1e-4)


def test_generation_equals_a_greedy_loop(
    predictor: Predictor,
    model: PackedModel,
    prompts: dict[str, ServedPrompt],
    queries: list[Query],
    tokenizer: TextTokenizer,
) -> None:
    spoken = [query for query in queries if not prompts[query.prompt].candidates]
    for query, answer in zip(spoken, predictor.answer(spoken), strict=True):
        prompt = prompts[query.prompt]
        said: list[int] = []
        score = 0.0
        while len(said) < prompt.max_answer_tokens and tokenizer.eos_token_id not in said:
            log_probs = next_log_probs(model, prompt, query.context + tuple(said))
            said.append(int(log_probs.argmax()))
            score += float(log_probs.max())
        text = tokenizer.decode([token for token in said if token != tokenizer.eos_token_id])
        assert answer.text == text.strip()
        assert answer.score == pytest.approx(float(torch.tensor(score).exp()), rel=1e-3)


def test_a_mixed_batch_equals_one_row_at_a_time(predictor: Predictor, queries: list[Query]) -> None:
    together = predictor.answer(queries)
    for query, answer in zip(queries, together, strict=True):
        (alone,) = predictor.answer([query])
        assert answer.text == alone.text
        assert answer.score == pytest.approx(alone.score, abs=1e-4)


def test_the_order_of_rows_is_the_order_of_answers(
    predictor: Predictor, queries: list[Query]
) -> None:
    turned = predictor.answer(queries[::-1])
    assert [a.text for a in turned[::-1]] == [a.text for a in predictor.answer(queries)]


def test_small_passes_give_the_same_answers(
    model: PackedModel,
    tokenizer: TextTokenizer,
    prompts: dict[str, ServedPrompt],
    predictor: Predictor,
    queries: list[Query],
) -> None:
    small = Predictor(model, tokenizer, prompts, max_positions=40)
    for one, other in zip(small.answer(queries), predictor.answer(queries), strict=True):
        assert one.text == other.text
        assert one.score == pytest.approx(other.score, abs=1e-4)


def test_generation_stops_at_the_end_token(
    model: PackedModel,
    tokenizer: TextTokenizer,
    prompts: dict[str, ServedPrompt],
) -> None:
    """A base whose next token is always the end token says nothing."""
    from copy import deepcopy

    silent = deepcopy(model)
    head = torch.zeros_like(silent.model.lm_head.weight)
    silent.model.lm_head = torch.nn.Linear(*reversed(head.shape), bias=True)
    with torch.no_grad():
        silent.model.lm_head.weight.copy_(head)
        silent.model.lm_head.bias.zero_()
        silent.model.lm_head.bias[tokenizer.eos_token_id] = 10.0
    answer, *_ = Predictor(silent, tokenizer, prompts).answer([Query("spoken", (100, -1))])
    assert answer.text == ""
    assert answer.score == pytest.approx(1.0, abs=0.05)


def test_no_queries_need_no_answers(predictor: Predictor) -> None:
    assert predictor.answer([]) == []


def test_a_mode_may_be_asked_of_any_prompt_that_has_it(
    predictor: Predictor, queries: list[Query]
) -> None:
    ranked = next(query for query in queries if query.prompt == "ranked")
    spoken = next(query for query in queries if query.prompt == "spoken")
    (said,) = predictor.answer([ranked], BatchMode.GENERATE)
    assert said.text is not None
    assert said.scores is None
    assert said.num_tokens > 0
    (chosen,) = predictor.answer([ranked], BatchMode.CLASSIFY)
    assert chosen == predictor.answer([ranked])[0]
    embedded = predictor.answer([ranked, spoken], BatchMode.EMBED)
    assert [len(each.embedding or ()) for each in embedded] == [64, 64]
    with pytest.raises(InvalidInput, match="spoken has no candidates"):
        predictor.answer([spoken], BatchMode.CLASSIFY)
    with pytest.raises(InvalidInput, match="nothing to score"):
        predictor.answer([spoken], BatchMode.SCORE)


def test_an_answer_that_cannot_be_scored_names_its_version(
    predictor: Predictor, queries: list[Query]
) -> None:
    query = Query(queries[0].prompt, queries[0].context, ("",))
    with pytest.raises(InvalidData, match="ranked@1: the answer '' has no tokens"):
        predictor.answer([query], BatchMode.SCORE)


def test_the_plan_is_told_in_a_line(predictor: Predictor, queries: list[Query]) -> None:
    predictor.answer(queries)
    assert "openings held as keys and values" in predictor.plan_note
    assert "\n" not in predictor.plan_note


def test_a_versions_candidates_are_calibrated_once(
    model: PackedModel,
    tokenizer: TextTokenizer,
    prompts: dict[str, ServedPrompt],
    queries: list[Query],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fresh = Predictor(model, tokenizer, prompts)
    ranked = [query for query in queries if query.prompt == "ranked"]
    first = fresh.answer(ranked, calibrate=True)
    monkeypatch.setattr(ServedPrompt, "encode_alike", None)  # would fail if it were called
    assert fresh.answer(ranked, calibrate=True) == first
