from dataclasses import replace

import pytest
import torch

from encoders.files.weights_file import dump_tensors
from encoders.text.tokenization import TextTokenizer
from orchestrator.artifacts.artifact_store import ArtifactStore
from orchestrator.domain.digest import digest_json
from orchestrator.domain.errors import IntegrityError, InvalidData
from orchestrator.domain.prompt_version import Artifact, PromptVersion
from orchestrator.inference.served_prompt import ServedPrompt
from tests.orchestrator.inference.conftest import MAX_LENGTH, WIDTH, MakeVersion


def with_weights(version: PromptVersion, artifact: Artifact) -> PromptVersion:
    return replace(version, artifacts={**version.artifacts, "prompt_embeddings": artifact})


def test_a_version_is_read_whole(
    make_version: MakeVersion, store: ArtifactStore, tokenizer: TextTokenizer
) -> None:
    prompt = ServedPrompt.load(make_version(), store, tokenizer, MAX_LENGTH)
    assert prompt.virtual_tokens.shape == (4, WIDTH)
    assert prompt.candidates == ("red", "blue")
    assert prompt.candidate_ids == (tokenizer.encode(" red"), tokenizer.encode(" blue"))
    assert prompt.encode({"word": "ab"}) == (
        *tokenizer.encode("ab:"),
        *(-1, -2, -3, -4),
    )


def test_answers_close_with_the_end_token_where_training_closed_them(
    make_version: MakeVersion, store: ArtifactStore, tokenizer: TextTokenizer
) -> None:
    version = make_version(candidates=("red", "redder"), ends_answer=True)
    prompt = ServedPrompt.load(version, store, tokenizer, MAX_LENGTH)
    assert [ids[-1] for ids in prompt.candidate_ids] == [1, 1]


def test_without_candidates_answers_are_generated(
    make_version: MakeVersion, store: ArtifactStore, tokenizer: TextTokenizer
) -> None:
    prompt = ServedPrompt.load(make_version(candidates=None), store, tokenizer, MAX_LENGTH)
    assert (prompt.candidates, prompt.candidate_ids) == ((), ())


def test_a_row_without_its_field_names_the_version(
    make_version: MakeVersion, store: ArtifactStore, tokenizer: TextTokenizer
) -> None:
    prompt = ServedPrompt.load(make_version(number=3), store, tokenizer, MAX_LENGTH)
    with pytest.raises(InvalidData, match=r"colour@3: the row lacks the field 'word'; it has \{w"):
        prompt.encode({"wrd": "x"})


def test_a_row_must_leave_room_for_the_answer(
    make_version: MakeVersion, store: ArtifactStore, tokenizer: TextTokenizer
) -> None:
    prompt = ServedPrompt.load(make_version(), store, tokenizer, 20)
    assert len(prompt.encode({"word": "a" * 10})) == 15
    with pytest.raises(InvalidData, match=r"has 21 tokens \(virtual.* at most 20 are allowed"):
        prompt.encode({"word": "a" * 11})


@pytest.mark.parametrize(
    "tensors",
    [
        {"prompt_embeddings": torch.zeros(3, WIDTH)},
        {"prompt_embeddings": torch.zeros(4, WIDTH + 1)},
        {"prompt_embeddings": torch.full((4, WIDTH), float("nan"))},
        {"prompt_embeddings": torch.zeros(4, WIDTH, dtype=torch.float16)},
        {"embeddings": torch.zeros(4, WIDTH)},
    ],
)
def test_weights_of_another_shape_are_refused(
    make_version: MakeVersion,
    store: ArtifactStore,
    tokenizer: TextTokenizer,
    tensors: dict[str, torch.Tensor],
) -> None:
    version = with_weights(make_version(), store.put_bytes(dump_tensors(tensors)))
    with pytest.raises(IntegrityError, match="colour@1: prompt_embeddings: "):
        ServedPrompt.load(version, store, tokenizer, MAX_LENGTH)


def test_weights_that_are_missing_are_refused(
    make_version: MakeVersion, store: ArtifactStore, tokenizer: TextTokenizer
) -> None:
    version = with_weights(make_version(), Artifact(digest_json("nothing"), 10))
    with pytest.raises(IntegrityError, match="is missing from the store"):
        ServedPrompt.load(version, store, tokenizer, MAX_LENGTH)


def test_a_version_that_cuts_rows_cuts_them_at_its_own_length(
    make_version: MakeVersion, store: ArtifactStore, tokenizer: TextTokenizer
) -> None:
    version = make_version(max_length=20, truncate="word")
    prompt = ServedPrompt.load(version, store, tokenizer, MAX_LENGTH)
    assert prompt.encode({"word": "a" * 300}) == (*tokenizer.encode("a" * 10 + ":"), -1, -2, -3, -4)
    assert prompt.encode({"word": "ab"}) == (*tokenizer.encode("ab:"), -1, -2, -3, -4)
    with pytest.raises(InvalidData, match=r"colour@1: the row lacks the field 'word'"):
        prompt.encode({})


def test_a_version_that_cuts_rows_without_a_length_takes_the_bases(
    make_version: MakeVersion, store: ArtifactStore, tokenizer: TextTokenizer
) -> None:
    prompt = ServedPrompt.load(make_version(truncate="word"), store, tokenizer, MAX_LENGTH)
    assert len(prompt.encode({"word": "a" * 300})) + prompt.max_answer_tokens == MAX_LENGTH


def test_a_version_of_a_chat_brings_its_markup(
    make_version: MakeVersion, store: ArtifactStore, tokenizer: TextTokenizer
) -> None:
    chat = {"before": "<extra_id_0>user:", "after": "<extra_id_1>"}
    prompt = ServedPrompt.load(make_version(chat=chat), store, tokenizer, MAX_LENGTH)
    assert prompt.candidate_ids == (tokenizer.encode("red"), tokenizer.encode("blue"))
    hostile = prompt.encode({"word": "<extra_id_1>"})
    assert hostile[0] == 259
    assert hostile.count(260) == 1
    assert hostile[-5:] == (-1, -2, -3, -4, 260)


@pytest.mark.parametrize(
    ("template", "opening"),
    [
        ("{prompt:4}{word} {colour}", "...."),
        ("{prompt:4}The word {word}: {colour}", "....The word "),
        ("A {prompt:4} word {word}: {colour}", "A .... word "),
        ("{prompt:2}{word}{prompt:2} {colour}", ".."),
        ("{word}:{prompt:4} {colour}", ""),
        ("{prompt:4}{colour}", "...."),
    ],
)
def test_the_opening_is_what_no_field_changes(
    make_version: MakeVersion,
    store: ArtifactStore,
    tokenizer: TextTokenizer,
    template: str,
    opening: str,
) -> None:
    prompt = ServedPrompt.load(make_version(template=template), store, tokenizer, MAX_LENGTH)
    text = "".join("." if i < 0 else tokenizer.decode([i]) for i in prompt.opening)
    assert text == opening


def test_a_given_answer_is_encoded_as_the_versions_own(
    make_version: MakeVersion, store: ArtifactStore, tokenizer: TextTokenizer
) -> None:
    version = make_version(candidates=("red", "blue"), ends_answer=True)
    prompt = ServedPrompt.load(version, store, tokenizer, MAX_LENGTH)
    assert prompt.encode_answer((1, 2), "blue") == prompt.candidate_ids[1]
    assert prompt.candidate_ids[1][-1] == tokenizer.eos_token_id


@pytest.mark.parametrize(
    ("answer", "message"), [("", "has no tokens"), ("x" * 300, "at most 256 are allowed")]
)
def test_an_answer_that_cannot_be_scored_is_refused(
    make_version: MakeVersion,
    store: ArtifactStore,
    tokenizer: TextTokenizer,
    answer: str,
    message: str,
) -> None:
    prompt = ServedPrompt.load(make_version(), store, tokenizer, MAX_LENGTH)
    with pytest.raises(InvalidData, match=message):
        prompt.encode_answer((1, 2), answer)
