import pytest
import torch

from encoders.prompt_embedding import PromptEmbedding

peft = pytest.importorskip("peft")


def test_keys_and_shapes_are_pefts() -> None:
    config = peft.PromptTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=3, token_dim=4, num_transformer_submodules=1
    )
    theirs = peft.tuners.prompt_tuning.PromptEmbedding(config, word_embeddings=None)
    ours = PromptEmbedding(3, 4)
    shapes = {name: weight.shape for name, weight in theirs.state_dict().items()}
    assert {name: weight.shape for name, weight in ours.state_dict().items()} == shapes


def test_virtual_tokens_are_the_table_and_take_a_gradient() -> None:
    torch.manual_seed(0)
    prompt = PromptEmbedding(3, 4)
    assert torch.equal(prompt.virtual_tokens(), prompt(torch.arange(3)[None])[0])
    prompt.virtual_tokens().sum().backward()
    assert torch.equal(prompt.embedding.weight.grad, torch.ones(3, 4))  # type: ignore[arg-type]
