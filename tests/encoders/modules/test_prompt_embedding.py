import json
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import ByT5Tokenizer, Gemma3ForCausalLM, Gemma3TextConfig

from encoders.config import PromptTuningConfig
from encoders.errors import ConfigError
from encoders.modules.prompt_embedding import PromptEmbedding
from tests.encoders.parity import assert_modules_equal

peft = pytest.importorskip("peft")

VOCAB_SIZE, WIDTH = 300, 4


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tokenizer")
    ByT5Tokenizer().save_pretrained(folder)
    return str(folder)


def word_embeddings(dtype: torch.dtype = torch.float32) -> nn.Embedding:
    table = torch.randn(VOCAB_SIZE, WIDTH, generator=torch.Generator().manual_seed(5))
    return nn.Embedding.from_pretrained(table.to(dtype))


def config_of(**fields: Any) -> PromptTuningConfig:
    return PromptTuningConfig(**{"num_virtual_tokens": 3, "token_dim": WIDTH, **fields})


def both(
    seed: int, base: nn.Module | None, num_tokens: int = 3, submodules: int = 1, **fields: Any
) -> tuple[PromptEmbedding, nn.Module]:
    fields |= {"num_virtual_tokens": num_tokens, "num_transformer_submodules": submodules}
    fields.setdefault("token_dim", WIDTH)
    torch.manual_seed(seed)
    ours = PromptEmbedding(PromptTuningConfig(**fields), base)
    torch.manual_seed(seed)
    config = peft.PromptTuningConfig(**fields)
    return ours, peft.PromptEmbedding(config, base)


@given(
    st.integers(1, 9),
    st.integers(1, 2),
    st.sampled_from(["RANDOM", "SAMPLE_VOCAB"]),
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.integers(0, 2**31),
)
@settings(max_examples=25, deadline=None)
def test_table_equals_pefts_bit_for_bit(
    num_tokens: int, submodules: int, start: str, dtype: torch.dtype, seed: int
) -> None:
    ours, theirs = both(
        seed, word_embeddings(dtype), num_tokens, submodules, prompt_tuning_init=start
    )
    assert_modules_equal(ours, theirs, torch.arange(num_tokens * submodules)[None])


@given(text=st.text(max_size=12), num_tokens=st.integers(1, 20))
@settings(max_examples=25, deadline=None)
def test_a_start_from_text_is_cut_or_repeated_as_in_peft(
    tokenizer: str, text: str, num_tokens: int
) -> None:
    ours, theirs = both(
        0,
        nn.Embedding(384, WIDTH),
        num_tokens,
        prompt_tuning_init="TEXT",
        prompt_tuning_init_text=text,
        tokenizer_name_or_path=tokenizer,
    )
    assert_modules_equal(ours, theirs, torch.arange(num_tokens)[None])


def test_virtual_tokens_are_the_table_and_take_a_gradient() -> None:
    prompt = PromptEmbedding(config_of())
    assert torch.equal(prompt.virtual_tokens(), prompt(torch.arange(3)[None])[0])
    prompt.virtual_tokens().sum().backward()
    assert torch.equal(prompt.embedding.weight.grad, torch.ones(3, 4))  # type: ignore[arg-type]


def test_a_start_is_a_copy_that_trains_alone() -> None:
    base = nn.Embedding(VOCAB_SIZE, WIDTH)
    before = base.weight.detach().clone()
    prompt = PromptEmbedding(config_of(prompt_tuning_init="SAMPLE_VOCAB"), base)
    prompt.virtual_tokens().sum().backward()
    assert base.weight.grad is None
    with torch.no_grad():
        prompt.embedding.weight.zero_()
    assert torch.equal(base.weight, before)


def test_embeddings_that_scale_are_taken_as_the_base_sees_them() -> None:
    base = Gemma3ForCausalLM(
        Gemma3TextConfig(
            vocab_size=50,
            hidden_size=WIDTH,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            num_key_value_heads=1,
            head_dim=4,
        )
    ).get_input_embeddings()
    ours, theirs = both(3, base, prompt_tuning_init="SAMPLE_VOCAB")
    assert_modules_equal(ours, theirs, torch.arange(3)[None])
    nearest = (ours.virtual_tokens()[:, None] - base.weight * 2).abs().sum(-1).min(-1).values
    assert not nearest.any(), "embeddings times the square root of their width"


class CalledOnly(nn.Embedding):
    """Embeddings as ZeRO-3 leaves them: the weight is there only while the module runs."""

    def __init__(self) -> None:
        super().__init__(VOCAB_SIZE, WIDTH)
        rows = self.weight.detach().clone()
        self.weight.data = torch.empty(0)
        self.shard = rows

    def __getattr__(self, name: str) -> Any:
        if name == "weight" and "shard" in self.__dict__:
            pytest.fail("the weight was touched")
        return super().__getattr__(name)

    def forward(self, input: Tensor) -> Tensor:
        return self.shard[input]


@pytest.mark.parametrize("start", ["TEXT", "SAMPLE_VOCAB"])
def test_sharded_word_embeddings_are_only_called(tokenizer: str, start: str) -> None:
    text = {"prompt_tuning_init_text": "abc", "tokenizer_name_or_path": tokenizer}
    config = config_of(prompt_tuning_init=start, **(text if start == "TEXT" else {}))
    base = CalledOnly()
    prompt = PromptEmbedding(config, base)
    rows = [(row == base.shard).all(-1).any() for row in prompt.virtual_tokens()]
    assert all(rows)


@pytest.mark.parametrize("start", ["TEXT", "SAMPLE_VOCAB", "RANDOM"])
def test_inference_mode_looks_nothing_up(start: str) -> None:
    text = {"prompt_tuning_init_text": "abc", "tokenizer_name_or_path": "/nowhere"}
    config = config_of(
        prompt_tuning_init=start, inference_mode=True, **(text if start == "TEXT" else {})
    )
    assert PromptEmbedding(config).virtual_tokens().shape == (3, WIDTH)


def test_init_std_sets_the_spread_of_a_random_start() -> None:
    torch.manual_seed(0)
    config = PromptTuningConfig(num_virtual_tokens=100, token_dim=100)
    spread = PromptEmbedding(config, init_std=0.023).virtual_tokens().std().item()
    assert spread == pytest.approx(0.023, rel=0.05)
    assert PromptEmbedding(config).virtual_tokens().std().item() == pytest.approx(1, rel=0.05)


@pytest.mark.parametrize("std", [-1.0, float("nan"), float("inf")])
def test_a_spread_that_is_none_is_refused(std: float) -> None:
    with pytest.raises(ConfigError, match="init_std is .* finite number from 0 up"):
        PromptEmbedding(config_of(), init_std=std)
    with pytest.raises(ConfigError, match="init_std is for a RANDOM start"):
        PromptEmbedding(config_of(prompt_tuning_init="SAMPLE_VOCAB"), init_std=0.1)


@pytest.mark.parametrize("base", [None, nn.Linear(3, 4)])
def test_a_start_without_word_embeddings_is_refused(base: nn.Module | None) -> None:
    with pytest.raises(ConfigError, match=r"needs word_embeddings: give .*get_input_embeddings"):
        PromptEmbedding(config_of(prompt_tuning_init="SAMPLE_VOCAB"), base)


def test_embeddings_of_another_width_are_refused_where_peft_takes_them() -> None:
    config = config_of(prompt_tuning_init="SAMPLE_VOCAB", token_dim=5)
    with pytest.raises(ConfigError, match="token_dim is 5, .* give token_dim=4"):
        PromptEmbedding(config, word_embeddings())


def text_config(tokenizer: str, text: str = "abc", **arguments: Any) -> PromptTuningConfig:
    return config_of(
        prompt_tuning_init="TEXT",
        prompt_tuning_init_text=text,
        tokenizer_name_or_path=tokenizer,
        tokenizer_kwargs=arguments,
    )


def test_a_tokenizer_of_another_base_is_refused(tokenizer: str) -> None:
    with pytest.raises(ConfigError, match=r"token id 1\d\d, but the base embeds 50 tokens"):
        PromptEmbedding(text_config(tokenizer), nn.Embedding(50, WIDTH))


def test_a_text_without_tokens_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "tokenizer"
    from tests.encoders.text.test_tokenization import word_tokenizer

    word_tokenizer().save_pretrained(folder)
    with pytest.raises(ConfigError, match="'' has no tokens"):
        PromptEmbedding(text_config(str(folder), text=""), word_embeddings())


def test_a_tokenizer_is_never_looked_for_on_a_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[object] = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **_: called.append(args))
    monkeypatch.setattr(socket.socket, "connect", lambda *args: called.append(args))
    for name in (str(tmp_path), "t5-base", "no/such/tokenizer"):
        with pytest.raises(ConfigError, match="no folder on this machine|no usable tokenizer"):
            PromptEmbedding(text_config(name, local_files_only=False), word_embeddings())
    assert not called


def test_a_tokenizers_own_code_is_never_run(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    (tmp_path / "code.py").write_text(f"open({str(mark)!r}, 'w')\nclass Evil: pass\n")
    settings = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["code.Evil", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    config = text_config(str(tmp_path), trust_remote_code=True)
    with pytest.raises(ConfigError, match="no usable tokenizer"):
        PromptEmbedding(config, word_embeddings())
    assert not mark.exists()
    assert config.tokenizer_kwargs == {"trust_remote_code": True}, "the config is left alone"
