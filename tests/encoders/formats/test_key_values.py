from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor

from encoders.config import PrefixTuningConfig
from encoders.errors import ConfigError, WeightsError
from encoders.files.weights_file import dump_tensors
from encoders.formats.key_values import KeyValues, export_key_values, load_key_values
from encoders.modules.prefix_encoder import PrefixEncoder
from tests.encoders.conftest import ARCHITECTURES, WIDTH, make_model

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`")  # PEFT's

Models = Callable[..., Any]
RUNNABLE = [name for name in ARCHITECTURES if name != "gpt_oss"]  # it has too few experts
TEXT = torch.tensor([[5, 17, 3, 80, 9], [1, 2, 3, 4, 5]])
VIRTUAL = 4


@pytest.fixture
def tokens() -> Tensor:
    return torch.randn(VIRTUAL, WIDTH, generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def logits_after(model: Any, prompt: KeyValues) -> Tensor:
    """Logits [B, T, vocabulary] of the text, the prompt fed back as a cache."""
    result: Tensor = model(
        input_ids=TEXT,
        attention_mask=torch.ones(len(TEXT), VIRTUAL + TEXT.shape[1]),
        past_key_values=prompt.cache(model, batch_size=len(TEXT)),
    ).logits
    return result


@torch.no_grad()
def logits_with(model: Any, tokens: Tensor) -> Tensor:
    """The same, the prompt's embeddings before the text's."""
    words = model.get_input_embeddings()(TEXT)
    embeds = torch.cat([tokens.to(words).expand(len(TEXT), -1, -1), words], dim=1)
    result: Tensor = model(inputs_embeds=embeds).logits[:, VIRTUAL:]
    return result


@pytest.mark.parametrize("name", RUNNABLE)
def test_keys_and_values_fed_back_give_the_logits_of_the_prompt(
    models: Models, tokens: Tensor, name: str, tmp_path: Path
) -> None:
    model = models(name)
    export_key_values(tmp_path / "a", KeyValues.of_prompt(model, tokens))
    found = logits_after(model, load_key_values(tmp_path / "a"))
    assert torch.allclose(found, logits_with(model, tokens), atol=1e-6)


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3"])
def test_a_learned_prefix_fed_back_gives_the_logits_of_peft(name: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model = make_model(name)
    config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=VIRTUAL).completed(
        model.config
    )
    encoder = PrefixEncoder(config)
    wrapped = peft.get_peft_model(
        model, peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=VIRTUAL)
    )
    wrapped.prompt_encoder["default"].load_state_dict(encoder.state_dict())
    with torch.no_grad():
        expected = wrapped(input_ids=TEXT, attention_mask=torch.ones_like(TEXT)).logits
    export_key_values(tmp_path / "a", KeyValues.of_prefix(config, encoder.prefix()))
    found = logits_after(model, load_key_values(tmp_path / "a"))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_keys_and_values_come_back_bit_for_bit(
    models: Models, tokens: Tensor, tmp_path: Path, dtype: torch.dtype
) -> None:
    prompt = KeyValues.of_prompt(models("llama", dtype), tokens)
    assert prompt.keys.shape == (2, 2, VIRTUAL, 8)
    assert prompt.keys.dtype is dtype
    assert prompt.model_type == "llama"
    export_key_values(tmp_path / "a", prompt)
    found = load_key_values(tmp_path / "a")
    assert torch.equal(found.keys, prompt.keys)
    assert torch.equal(found.values, prompt.values)
    assert found.keys.dtype is dtype
    assert found.model_type == "llama"


def test_a_base_in_training_is_run_without_dropout_and_stays_in_training(tokens: Tensor) -> None:
    model = make_model("gpt2", resid_pdrop=0.5, embd_pdrop=0.5)
    expected = KeyValues.of_prompt(model, tokens)
    found = KeyValues.of_prompt(model.train(), tokens)
    assert model.training
    assert torch.equal(found.keys, expected.keys)
    assert not found.keys.requires_grad


def test_serving_one_cache_leaves_the_prompt_as_it_is(models: Models, tokens: Tensor) -> None:
    model = models("llama")
    prompt = KeyValues.of_prompt(model, tokens)
    keys = prompt.keys.clone()
    first = logits_after(model, prompt)
    assert torch.equal(logits_after(model, prompt), first)
    assert torch.equal(prompt.keys, keys)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"num_hidden_layers": 3}, r"\(2, 2, 4, 8\), expected float32 \(3, 2, 4, 8\)"),
        ({"num_key_value_heads": 4}, r"\(2, 2, 4, 8\), expected float32 \(2, 4, 4, 8\)"),
        ({"head_dim": 16}, r"\(2, 2, 4, 8\), expected float32 \(2, 2, 4, 16\)"),
    ],
)
def test_a_base_of_other_sizes_is_refused(
    models: Models, tokens: Tensor, changes: dict[str, int], reason: str
) -> None:
    prompt = KeyValues.of_prompt(models("llama"), tokens)
    with pytest.raises(WeightsError, match=f"for this llama: 'keys' is float32 {reason}"):
        prompt.cache(make_model("llama", **changes))


def test_a_base_of_another_dtype_or_architecture_is_refused(models: Models, tokens: Tensor) -> None:
    prompt = KeyValues.of_prompt(models("llama"), tokens)
    with pytest.raises(WeightsError, match="'keys' is float32 .* expected bfloat16"):
        prompt.check_base(models("llama", torch.bfloat16))
    with pytest.raises(WeightsError, match="this qwen3 were computed by another base, a llama"):
        prompt.check_base(models("qwen3"))
    KeyValues(prompt.keys, prompt.values).check_base(models("qwen3"))


def test_a_base_that_forgets_keys_is_refused(tokens: Tensor) -> None:
    model = make_model("mistral", sliding_window=3)
    with pytest.raises(WeightsError, match="a mistral keeps .* with all 4 virtual tokens"):
        KeyValues.of_prompt(model, tokens)


def test_a_base_that_is_not_causal_is_refused(tokens: Tensor) -> None:
    bert = transformers.BertModel(
        transformers.BertConfig(hidden_size=WIDTH, num_attention_heads=2, num_hidden_layers=1)
    )
    with pytest.raises(WeightsError, match="a bert keeps keys and values of the shapes set()"):
        KeyValues.of_prompt(bert, tokens)
    t5 = transformers.T5Model(
        transformers.T5Config(d_model=WIDTH, num_layers=1, num_heads=2, d_kv=4, d_ff=8)
    )
    with pytest.raises(WeightsError, match="a t5 is not causal"):
        KeyValues.of_prompt(t5, tokens)


def test_virtual_tokens_of_another_width_are_refused(models: Models) -> None:
    with pytest.raises(WeightsError, match=rf"the base needs \[V, {WIDTH}\]"):
        KeyValues.of_prompt(models("llama"), torch.ones(VIRTUAL, WIDTH + 1))


def test_a_prefix_that_is_not_its_configs_is_refused() -> None:
    config = PrefixTuningConfig(
        num_virtual_tokens=2, token_dim=4, num_layers=3, num_attention_heads=2
    )
    with pytest.raises(WeightsError, match=r"'table' is float32 \(2, 23\), expected"):
        KeyValues.of_prefix(config, torch.ones(2, 23))
    with pytest.raises(ConfigError, match="num_attention_heads is missing"):
        KeyValues.of_prefix(
            PrefixTuningConfig(num_virtual_tokens=2, token_dim=4, num_layers=3), torch.ones(2, 24)
        )


GOOD = {"keys": torch.ones(2, 2, 4, 8), "values": torch.ones(2, 2, 4, 8)}
FACTS = {"kind": "key_values", "model_type": "llama", "first_position": 0}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"keys": None}, "it lacks 'keys'"),
        ({"more": torch.ones(1)}, "it holds 'more'; expected is nothing but 'keys', 'values'"),
        ({"keys": torch.ones(2, 2, 4, 9)}, "'values' is .* expected"),
        ({"values": torch.ones(2, 2, 4, 8).half()}, "'values' is float16"),
        ({"keys": torch.ones(2, 2, 4, 8).double()}, "'keys' is float64"),
        ({"keys": torch.ones(64), "values": torch.ones(64)}, "keys have four dimensions"),
        ({"keys": torch.ones(2, 0, 4, 8), "values": torch.ones(2, 0, 4, 8)}, "four dimensions"),
        ({"values": torch.ones(2, 2, 4, 8) / 0}, "'values' holds NaN or infinity"),
    ],
)
def test_tensors_that_are_no_keys_and_values_are_refused(
    tmp_path: Path, change: dict[str, Tensor | None], reason: str
) -> None:
    tensors = {name: tensor for name, tensor in (GOOD | change).items() if tensor is not None}
    (tmp_path / "a").write_bytes(dump_tensors(tensors, FACTS))
    with pytest.raises(WeightsError, match=f"^{tmp_path / 'a'}: .*{reason}"):
        load_key_values(tmp_path / "a")


@pytest.mark.parametrize(
    "change", [{"kind": "x"}, {"model_type": 1}, {"first_position": 7}, {"first_position": None}]
)
def test_a_file_that_does_not_say_what_it_holds_is_refused(
    tmp_path: Path, change: dict[str, object]
) -> None:
    (tmp_path / "a").write_bytes(dump_tensors(GOOD, FACTS | change))
    with pytest.raises(WeightsError, match="does not say that it holds keys and values from 0"):
        load_key_values(tmp_path / "a")
    save_file(GOOD, tmp_path / "a")
    with pytest.raises(WeightsError, match="does not say that it holds keys and values from 0"):
        load_key_values(tmp_path / "a")


def test_keys_that_diverged_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="'keys' holds NaN"):
        export_key_values(tmp_path / "a", KeyValues(GOOD["keys"] / 0, GOOD["values"]))
    assert not any(tmp_path.iterdir())
