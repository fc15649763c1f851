"""Random tiny causal language models, and a plain row-by-row run of them to compare with."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from encoders.packed.packed_attention import PACKED
from encoders.packed.packed_model import PackedModel
from encoders.packed.packing import PackedRow
from tests.tiny import make_tiny_base

WIDTH = 32
VOCABULARY = 97
LONGEST = 64

_SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": LONGEST,
}
_GPT2 = {"vocab_size": VOCABULARY, "n_embd": WIDTH, "n_layer": 2, "n_head": 4, "n_positions": 64}

#: transformers' config class and its arguments, by architecture.
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {**_SHAPE, "num_key_value_heads": 2, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3Config", {**_SHAPE, "num_key_value_heads": 2, "head_dim": 8}),
    "mistral": ("MistralConfig", {**_SHAPE, "num_key_value_heads": 2, "sliding_window": 32}),
    "gpt2": ("GPT2Config", {**_GPT2, "bos_token_id": 0, "eos_token_id": 0}),
    "gpt_neox": ("GPTNeoXConfig", _SHAPE),
    "gemma2": ("Gemma2Config", {**_SHAPE, "num_key_value_heads": 2, "head_dim": 8}),
    "gpt_oss": (
        "GptOssConfig",
        {**_SHAPE, "num_key_value_heads": 2, "head_dim": 8, "num_local_experts": 2},
    ),
}

Gradients = dict[str, Tensor]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Two OpenMP threads on a busy machine can be far slower than one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_model(name: str, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """A random transformers model with eager attention."""
    import transformers

    kind, arguments = ARCHITECTURES[name]
    config = getattr(transformers, kind)(**{**arguments, **changes})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    return model.to(dtype).eval()


@pytest.fixture(scope="session")
def models() -> Callable[..., Any]:
    """`make_model`, once for each architecture and dtype."""
    made: dict[Any, Any] = {}

    def get(name: str, dtype: torch.dtype = torch.float32) -> Any:
        if (name, dtype) not in made:
            made[name, dtype] = make_model(name, dtype)
        made[name, dtype].set_attn_implementation("eager")  # whatever another test has set
        return made[name, dtype]

    return get


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_base(tmp_path_factory.mktemp("tiny-base"))


def packed(model: Any) -> PackedModel:
    """The same model, its attention packed from now on."""
    model.set_attn_implementation(PACKED)
    return PackedModel(model)


def random_tokens(
    lengths: Mapping[str, int], dtype: torch.dtype = torch.float32, seed: int = 1
) -> Gradients:
    """A random table of virtual tokens, as a leaf, for each prompt."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(length, WIDTH, generator=generator, dtype=dtype).requires_grad_()
        for name, length in lengths.items()
    }


def plain_logits(
    model: Any,
    row: PackedRow,
    answer: Sequence[int],
    tokens: Gradients,
    attention: str = "eager",
) -> Tensor:
    """All logits [T, vocabulary] of one row and one answer, run alone by transformers."""
    ids = torch.tensor([*row.context, *answer])
    embeds = model.get_input_embeddings()(ids.clamp(min=0))
    virtual = (ids < 0).nonzero()[:, 0]
    if row.prompt is not None and len(virtual):
        embeds = embeds.index_copy(0, virtual, tokens[row.prompt][-ids[virtual] - 1])
    model.set_attn_implementation(attention)
    logits: Tensor = model(inputs_embeds=embeds[None], use_cache=False).logits[0]
    return logits


def plain_log_probs(
    model: Any, rows: Sequence[PackedRow], tokens: Gradients, attention: str = "eager"
) -> Tensor:
    """The log-probability of every answer of every row, each run alone."""
    scores = []
    for row in rows:
        for answer in row.answers:
            log_probs = plain_logits(model, row, answer, tokens, attention).log_softmax(-1)
            first = len(row.context) - 1
            scores.append(
                torch.stack([log_probs[first + i, t] for i, t in enumerate(answer)]).sum()
            )
    return torch.stack(scores)
