"""Whatever is not a safe, complete causal language model is refused, with its reason."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from orchestrator.bases.base_store import BaseStore
from orchestrator.domain.errors import InvalidModelFolder

Edit = Callable[..., None]


@pytest.fixture
def refuse(store: BaseStore, tiny_model: Path) -> Callable[[str], None]:
    """Expect that the model is refused for `reason`, and that nothing was stored."""

    def check(reason: str) -> None:
        with pytest.raises(InvalidModelFolder, match=reason) as caught:
            store.add("tiny", tiny_model)
        assert str(tiny_model) in str(caught.value)
        assert not store.root.exists() or [p.name for p in store.root.iterdir()] == [".lock"]

    return check


def change_weights(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_folder_that_is_not_there(store: BaseStore, tmp_path: Path) -> None:
    with pytest.raises(InvalidModelFolder, match=r"no such folder[\s\S]*downloads nothing"):
        store.add("tiny", tmp_path / "nowhere")


def test_a_missing_config(tiny_model: Path, refuse: Callable[[str], None]) -> None:
    (tiny_model / "config.json").unlink()
    refuse(r"config\.json is missing")


def test_an_adapter_is_not_a_base(tiny_model: Path, refuse: Callable[[str], None]) -> None:
    (tiny_model / "config.json").rename(tiny_model / "adapter_config.json")
    refuse(r"config\.json is missing[\s\S]*PEFT adapter")


@pytest.mark.parametrize("text", ["", "{", "[]", '"a"', "[" * 100_000, '{"model_type": 3}'])
def test_a_config_that_is_no_config(
    tiny_model: Path, refuse: Callable[[str], None], text: str
) -> None:
    (tiny_model / "config.json").write_text(text)
    refuse(r"not JSON|not a JSON object|no model_type")


def test_pickles_are_refused(tiny_model: Path, refuse: Callable[[str], None]) -> None:
    (tiny_model / "model.safetensors").rename(tiny_model / "pytorch_model.bin")
    refuse(r"pickles \(pytorch_model\.bin\)")


def test_missing_weights(tiny_model: Path, refuse: Callable[[str], None]) -> None:
    (tiny_model / "model.safetensors").unlink()
    refuse("there are no weights")


def test_a_gguf_file_is_pointed_at(tiny_model: Path, refuse: Callable[[str], None]) -> None:
    (tiny_model / "model.safetensors").rename(tiny_model / "tiny.gguf")
    refuse(r"no weights[\s\S]*--gguf tiny\.gguf")


def test_a_missing_tokenizer(tiny_model: Path, refuse: Callable[[str], None]) -> None:
    (tiny_model / "tokenizer_config.json").unlink()
    refuse("the tokenizer is missing")


def test_another_models_tokenizer(
    tiny_model: Path, refuse: Callable[[str], None], edit_json: Edit
) -> None:
    edit_json("tokenizer_config.json", tokenizer_class="GPT2Tokenizer")
    refuse("tokenizer")


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_code_is_refused(refuse: Callable[[str], None], edit_json: Edit, name: str) -> None:
    edit_json(name, auto_map={"AutoModelForCausalLM": "modeling_evil.Evil"})
    refuse(f"{name} has 'auto_map'")


def test_nested_code_is_refused(refuse: Callable[[str], None], edit_json: Edit) -> None:
    edit_json(text_config={"attn_implementation": "someone/kernel"})
    refuse("'attn_implementation'")


def test_weights_elsewhere_are_refused(refuse: Callable[[str], None], edit_json: Edit) -> None:
    edit_json(transformers_weights="../other.safetensors")
    refuse("'transformers_weights'")


def test_quantized_weights_are_refused(refuse: Callable[[str], None], edit_json: Edit) -> None:
    edit_json(quantization_config={"quant_method": "bitsandbytes"})
    refuse("quantized")


def test_an_unknown_model_type(refuse: Callable[[str], None], edit_json: Edit) -> None:
    edit_json(model_type="nosuchmodel")
    refuse(r"config\.json cannot be loaded.*nosuchmodel")


def test_no_causal_language_model(refuse: Callable[[str], None], edit_json: Edit) -> None:
    edit_json(architectures=["LlamaForSequenceClassification"])
    refuse("not a causal language model; expected LlamaForCausalLM")


def test_an_encoder_decoder(refuse: Callable[[str], None], edit_json: Edit) -> None:
    edit_json(model_type="t5", architectures=["T5ForConditionalGeneration"])
    refuse("not a causal language model")


@pytest.mark.parametrize(
    "sizes",
    [
        {"hidden_size": 1 << 20},
        {"vocab_size": 1 << 40},
        {"num_hidden_layers": 1 << 40},
        {"num_hidden_layers": 0},
        {"hidden_size": -64},
        {"intermediate_size": 1 << 62},
    ],
)
def test_absurd_sizes(
    refuse: Callable[[str], None], edit_json: Edit, sizes: dict[str, int]
) -> None:
    edit_json(**sizes)
    refuse(r"parameters, the weights hold|num_hidden_layers is|config\.json cannot be loaded")


def test_a_missing_tensor(tiny_model: Path, refuse: Callable[[str], None]) -> None:
    change_weights(tiny_model, lambda tensors: tensors.pop("model.norm.weight"))
    refuse(r"do not match the config: missing model\.norm\.weight")


def test_an_unexpected_tensor(tiny_model: Path, refuse: Callable[[str], None]) -> None:
    change_weights(tiny_model, lambda tensors: tensors.update(extra=torch.zeros(3)))
    refuse("do not match the config: unexpected extra")


def test_a_tensor_of_another_shape(tiny_model: Path, refuse: Callable[[str], None]) -> None:
    narrow = {"model.norm.weight": torch.zeros(63)}
    change_weights(tiny_model, lambda tensors: tensors.update(narrow))
    refuse(r"mismatched model\.norm\.weight \(stored \[63\], expected \[64\]\)")


def test_truncated_weights(tiny_model: Path, refuse: Callable[[str], None]) -> None:
    data = (tiny_model / "model.safetensors").read_bytes()
    (tiny_model / "model.safetensors").write_bytes(data[:-100])
    refuse("the weights cannot be loaded")


@pytest.mark.parametrize("shard", ["../evil.safetensors", "/etc/passwd", "evil.bin", ""])
def test_an_index_that_leaves_the_folder(
    tiny_model: Path, refuse: Callable[[str], None], shard: str
) -> None:
    (tiny_model / "model.safetensors").unlink()
    index = {"weight_map": {"model.norm.weight": shard}}
    (tiny_model / "model.safetensors.index.json").write_text(json.dumps(index))
    refuse(r"a shard is a \.safetensors file of the folder")


def test_a_missing_shard(tiny_model: Path, refuse: Callable[[str], None]) -> None:
    (tiny_model / "model.safetensors").unlink()
    index = {"weight_map": {"model.norm.weight": "model-1.safetensors"}}
    (tiny_model / "model.safetensors.index.json").write_text(json.dumps(index))
    refuse(r"the shard model-1\.safetensors .* is missing")
