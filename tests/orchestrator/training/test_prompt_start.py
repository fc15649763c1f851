from typing import Any

import pytest
import torch
from torch import Tensor, nn

from encoders.modules.prompt_init import embedding_scale
from encoders.text.tokenization import TextTokenizer
from orchestrator.domain.errors import InvalidData
from orchestrator.domain.task_spec import TaskSpec
from orchestrator.training.prompt_start import look_up_starts, start_tokens
from orchestrator.training.sharded_base import ShardedBase
from orchestrator.training.task_trainer import TaskTrainer
from tests.orchestrator.training.conftest import WIDTH, Loop, MakeData, make_spec

VOCABULARY = {"from": "vocabulary"}
TEXT = {"from": "text", "text": "ab"}


def spec_with(init: dict[str, str] | None, task: str = "colour", **changes: Any) -> TaskSpec:
    return make_spec(task, encoder={"type": "mlp", "hidden_size": 16, "init": init}, **changes)


class CountingEmbeddings(nn.Module):
    """Counts its calls: under ZeRO-3 every rank must make as many."""

    def __init__(self) -> None:
        super().__init__()
        self.num_calls = 0

    def forward(self, ids: Tensor) -> Tensor:
        self.num_calls += 1
        return ids.unsqueeze(-1).expand(*ids.shape, 2).float()


def test_a_text_gives_its_tokens(tokenizer: TextTokenizer) -> None:
    assert start_tokens(spec_with(TEXT), tokenizer) == tokenizer.encode("ab")


def test_vocabulary_gives_a_real_token_for_each_virtual_one(tokenizer: TextTokenizer) -> None:
    ids = start_tokens(spec_with(VOCABULARY), tokenizer)
    assert len(ids) == 4
    assert set(ids) <= set(tokenizer.text_ids)


def test_the_seed_alone_decides_the_tokens(tokenizer: TextTokenizer) -> None:
    first = start_tokens(spec_with(VOCABULARY, training={"seed": 1}), tokenizer)
    torch.rand(10)
    again = spec_with(VOCABULARY, task="other", training={"seed": 1, "steps": 9})
    assert start_tokens(again, tokenizer) == first
    assert start_tokens(spec_with(VOCABULARY, training={"seed": 2}), tokenizer) != first


def test_without_an_init_there_are_none(tokenizer: TextTokenizer) -> None:
    assert start_tokens(spec_with(None), tokenizer) == ()


def test_a_text_without_tokens_is_refused() -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.BPE(vocab={"a": 0}, merges=[]))
    tokenizer = TextTokenizer(PreTrainedTokenizerFast(tokenizer_object=words))
    spec = spec_with({"from": "text", "text": "zz"})
    with pytest.raises(InvalidData, match=r"encoder\.init\.text 'zz' has no tokens"):
        start_tokens(spec, tokenizer)


@pytest.mark.parametrize("inits", [[], [None], [TEXT], [VOCABULARY, None, TEXT]])
def test_every_rank_calls_the_embeddings_twice(
    tokenizer: TextTokenizer, inits: list[dict[str, str] | None]
) -> None:
    embeddings = CountingEmbeddings()
    specs = {str(number): spec_with(init) for number, init in enumerate(inits)}
    starts = look_up_starts(specs, tokenizer, embeddings)
    assert embeddings.num_calls == 2
    assert set(starts) == {str(number) for number, init in enumerate(inits) if init}
    for key, start in starts.items():
        assert start.table[:, 0].tolist() == list(start_tokens(specs[key], tokenizer))


def test_a_task_trains_on_from_its_text(
    tokenizer: TextTokenizer, base: ShardedBase, make_data: MakeData
) -> None:
    embeddings = base.model.model.get_input_embeddings()
    spec = spec_with(TEXT)
    start = look_up_starts({"job": spec}, tokenizer, embeddings)["job"]
    assert start.scale == embedding_scale(embeddings, tokenizer.text_ids)
    trainer = TaskTrainer(spec, make_data(spec), WIDTH, start)
    expected = embeddings(torch.tensor([*tokenizer.encode("ab")] * 2))
    assert torch.equal(trainer.virtual_tokens(), expected)
    (run,) = Loop(base, [trainer]).finished
    assert run.trainer.step == 4
    assert not torch.allclose(trainer.virtual_tokens(), expected, atol=1e-3)


def test_a_checkpoint_brings_the_start_back(
    tokenizer: TextTokenizer, base: ShardedBase, make_data: MakeData
) -> None:
    spec = spec_with(VOCABULARY)
    embeddings = base.model.model.get_input_embeddings()
    start = look_up_starts({"job": spec}, tokenizer, embeddings)["job"]
    trained, resumed = (TaskTrainer(spec, make_data(spec), WIDTH, start) for _ in range(2))
    Loop(base, [trained])
    resumed.restore(trained.state())
    assert torch.equal(resumed.virtual_tokens(), trained.virtual_tokens())
