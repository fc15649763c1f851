"""A diff names what differs and nothing else, down to each virtual token."""

import shutil

import pytest
import torch
import torch.nn.functional as F

from encoders.packed.packed_model import load_frozen
from encoders.text.tokenization import TextTokenizer
from orchestrator.domain.errors import IntegrityError
from orchestrator.questions.prompt_diff import Change
from orchestrator.sdk import Tutti
from tests.orchestrator.questions.conftest import NUM_TOKENS, WIDTH, Register


def test_what_differs_is_named_and_nothing_else(tutti: Tutti, register: Register) -> None:
    a = register(0)
    b = register(1, training={"steps": 8}, truncate="word")
    found = tutti.diff("colour@1", "colour@2")
    assert found.config == (Change("training.steps", 4, 8), Change("truncate", None, "word"))
    assert found.lineage == (Change("parent", None, 1),)
    assert (found.metrics, found.notes) == ((), ())
    tokens = [
        F.cosine_similarity(*pair, dim=0).item()
        for pair in zip(*(tutti.load(each.ref).virtual_tokens for each in (a, b)), strict=True)
    ]
    assert [token.cosine for token in found.tokens] == pytest.approx(tokens, abs=1e-6)


def test_a_version_does_not_differ_from_itself(tutti: Tutti, register: Register) -> None:
    register()
    found = tutti.diff("colour@1", "colour@1")
    assert (found.config, found.metrics, found.lineage) == ((), (), ())
    assert [token.cosine for token in found.tokens] == pytest.approx([1.0] * NUM_TOKENS)
    assert all(token.nearest_a == token.nearest_b for token in found.tokens)


def test_a_virtual_token_that_is_a_word_is_nearest_to_it(tutti: Tutti, register: Register) -> None:
    folder = tutti.base_folder(tutti.base("tiny").fingerprint)
    ids = TextTokenizer.load(folder).encode("word")
    embeddings = load_frozen(folder, "eager", torch.float32).get_input_embeddings().weight
    register(tokens=embeddings[list(ids)].detach() * 3)
    register(1)
    found = tutti.diff("colour@1", "colour@2").tokens
    assert "".join(token.nearest_a[0] for token in found) == "word"
    assert {len(token.nearest_b) for token in found} == {3}


def test_without_the_base_only_the_nearest_tokens_are_missing(
    tutti: Tutti, register: Register
) -> None:
    register(0)
    register(1)
    shutil.rmtree(tutti.settings.bases)
    found = tutti.diff("colour@1", "colour@2")
    assert len(found.notes) == 1
    assert "no nearest tokens on the base tiny" in found.notes[0]
    assert all(token.cosine is not None for token in found.tokens)
    assert all(token.nearest_a == token.nearest_b == () for token in found.tokens)


def test_virtual_tokens_of_two_bases_have_no_cosine(tutti: Tutti, register: Register) -> None:
    register(0)
    register(0, lineage={"base_fingerprint": "f" * 64})
    found = tutti.diff("colour@1", "colour@2")
    assert [token.cosine for token in found.tokens] == [None] * NUM_TOKENS
    assert "the bases differ" in found.notes[0]
    assert all(token.nearest_a and not token.nearest_b for token in found.tokens)


def test_a_longer_prompt_has_tokens_without_a_partner(tutti: Tutti, register: Register) -> None:
    register(0)
    longer = torch.randn(NUM_TOKENS + 2, WIDTH)
    register(tokens=longer, num_virtual_tokens=NUM_TOKENS + 2)
    found = tutti.diff("colour@1", "colour@2").tokens
    assert [token.cosine is None for token in found] == [False] * NUM_TOKENS + [True] * 2
    assert [len(token.nearest_a) for token in found] == [3] * NUM_TOKENS + [0] * 2


def test_altered_weights_are_refused(tutti: Tutti, register: Register) -> None:
    version = register(0)
    register(1)
    digest = version.artifacts["prompt_embeddings"].digest
    (path,) = (p for p in tutti.settings.home.rglob(digest) if p.is_file())
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(IntegrityError, match=digest):
        tutti.diff("colour@1", "colour@2")


def test_metrics_are_compared(tutti: Tutti, register: Register) -> None:
    register(0)
    register(1, metrics={"loss": 1.0})
    found = tutti.diff("colour@1", "colour@2")
    assert found.metrics == (Change("accuracy", 0.5, None), Change("loss", None, 1.0))
