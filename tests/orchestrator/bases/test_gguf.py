"""A GGUF file becomes a plain transformers folder, once."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from orchestrator.bases.base_store import BaseStore
from orchestrator.domain.errors import InvalidModelFolder

NUM_LAYERS = 2
TOKENS = [chr(code) for code in range(33, 127)] + ["Ġ", "th"]  # Ġ: GPT-2's name for a space


def tiny_shapes() -> dict[str, tuple[int, ...]]:
    """The tensors of a Llama with d=64, 4 heads, 2 KV heads, by their names in GGUF."""
    layer: dict[str, tuple[int, ...]]
    layer = {"attn_q": (64, 64), "attn_k": (32, 64), "attn_v": (32, 64), "attn_output": (64, 64)}
    layer |= {"ffn_gate": (128, 64), "ffn_up": (128, 64), "ffn_down": (64, 128)}
    layer |= {"attn_norm": (64,), "ffn_norm": (64,)}
    shapes = {f"blk.{i}.{name}": shape for i in range(NUM_LAYERS) for name, shape in layer.items()}
    return {"token_embd": (len(TOKENS), 64), "output_norm": (64,), **shapes}


@pytest.fixture
def tiny_gguf(tmp_path: Path) -> Path:
    from gguf import GGUFWriter

    path = tmp_path / "models" / "tiny.gguf"
    path.parent.mkdir()
    writer = GGUFWriter(path, "llama")
    for key, value in {"context_length": 256, "embedding_length": 64, "block_count": 2}.items():
        getattr(writer, f"add_{key}")(value)
    for key, value in {"feed_forward_length": 128, "head_count": 4, "head_count_kv": 2}.items():
        getattr(writer, f"add_{key}")(value)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_merges(["t h"])
    random = np.random.default_rng(0)
    for name, shape in tiny_shapes().items():
        writer.add_tensor(f"{name}.weight", random.normal(size=shape).astype(np.float32))
    for write in ("header_to_file", "kv_data_to_file", "tensors_to_file"):
        getattr(writer, f"write_{write}")()
    writer.close()
    return path


def test_a_gguf_file_is_converted_once(
    store: BaseStore,
    tiny_gguf: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    record = store.add("tiny", tiny_gguf.parent, "tiny.gguf")
    assert tuple(capfd.readouterr()) == ("", "")
    assert record.source == str(tiny_gguf)
    assert (record.hidden_size, record.max_length) == (64, 256)
    folder = store.path(record.fingerprint)
    assert {path.name for path in folder.iterdir()} == {
        *("config.json", "model.safetensors", "manifest.json"),
        *("tokenizer.json", "tokenizer_config.json"),
    }
    read = AutoModelForCausalLM.from_pretrained(tiny_gguf.parent, gguf_file="tiny.gguf")
    kept = AutoModelForCausalLM.from_pretrained(folder)
    ids = AutoTokenizer.from_pretrained(folder)("the capital", return_tensors="pt")["input_ids"]
    assert read(ids).logits.equal(kept(ids).logits)

    monkeypatch.setattr("orchestrator.bases.base_source.convert_gguf", None)
    for source, gguf in ((tiny_gguf, None), (tiny_gguf.parent, str(tiny_gguf))):
        assert store.add("tiny", source, gguf).fingerprint == record.fingerprint


@pytest.mark.parametrize("gguf", ["../models/tiny.gguf", "a/../../tiny.gguf"])
def test_a_path_that_climbs_is_refused(store: BaseStore, tiny_gguf: Path, gguf: str) -> None:
    with pytest.raises(InvalidModelFolder, match=r"contains '\.\.'"):
        store.add("tiny", tiny_gguf.parent, gguf)


def test_a_missing_gguf_file_names_those_there(store: BaseStore, tiny_gguf: Path) -> None:
    with pytest.raises(InvalidModelFolder, match=r"no such file[\s\S]*tiny\.gguf\.$"):
        store.add("tiny", tiny_gguf.parent, "other.gguf")


@pytest.mark.parametrize(
    "spoil",
    [lambda data: b"PK" + data[2:], lambda data: data[:5000], lambda data: data[:-100]],
    ids=["another format", "truncated in the header", "truncated in the weights"],
)
def test_a_spoilt_gguf_file_is_refused(
    store: BaseStore, tiny_gguf: Path, spoil: Callable[[bytes], bytes]
) -> None:
    tiny_gguf.write_bytes(spoil(tiny_gguf.read_bytes()))
    with pytest.raises(InvalidModelFolder, match=r"tiny\.gguf: "):
        store.add("tiny", tiny_gguf)
    assert [path.name for path in store.root.iterdir()] == [".lock"]
