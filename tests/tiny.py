"""A tiny random base model, and tiny tasks on it: real parts, small enough for unit tests."""

import json
from pathlib import Path

import torch

LABELS = ("red", "blue")


def make_tiny_base(
    folder: Path, seed: int = 0, vocab_size: int = 384, max_length: int = 256
) -> Path:
    """Write a random two-layer Llama with a byte tokenizer (ByT5, which needs no files)."""
    from transformers import ByT5Tokenizer, LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=max_length,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=1,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(folder)
    ByT5Tokenizer().save_pretrained(folder)
    return folder


def make_unpackable_base(folder: Path) -> Path:
    """Write a random base whose attention cannot be exchanged, with a byte tokenizer."""
    from transformers import BloomConfig, BloomForCausalLM, ByT5Tokenizer

    config = BloomConfig(vocab_size=384, hidden_size=64, n_layer=2, n_head=4)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        BloomForCausalLM(config).save_pretrained(folder)
    ByT5Tokenizer().save_pretrained(folder)
    return folder


def write_rows(path: Path, rows: list[dict[str, str]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def colour_rows(num_rows: int, offset: int = 0) -> list[dict[str, str]]:
    """Words whose label depends on their first letter."""
    return [
        {"word": f"{'ab'[i % 2]}{offset + i}", "colour": LABELS[i % 2]} for i in range(num_rows)
    ]


def write_task(folder: Path, task: str, *, base: str = "tiny", **changes: object) -> Path:
    """Write a small task's spec and data; `changes` replace top-level keys of the spec."""
    import yaml

    write_rows(folder / "data" / f"{task}.train.jsonl", colour_rows(16))
    write_rows(folder / "data" / f"{task}.eval.jsonl", colour_rows(6, offset=100))
    spec: dict[str, object] = {
        "task": task,
        "base": base,
        "template": "{word}:{prompt:4} {colour}",
        "answer": "colour",
        "encoder": {"type": "mlp", "hidden_size": 16},
        "data": {"train": f"data/{task}.train.jsonl", "eval": f"data/{task}.eval.jsonl"},
        "training": {"steps": 4, "batch_size": 4, "learning_rate": 0.01, "seed": 1},
        "evaluation": {"every": 2, "manual_prompt": "the colour of {word} is {colour}"},
        "promote": {"alias": "production", "when": "accuracy >= 0.0"},
    }
    spec.update(changes)
    path = folder / f"{task}.yaml"
    path.write_text(yaml.safe_dump(spec, sort_keys=False), encoding="utf-8")
    return path


def keeps_row_bits() -> bool:
    """Whether this machine's matrix kernels give a row the same bits whatever stands beside it,
    from MIN_POSITIONS rows up. Where they do not, results agree to rounding."""
    from encoders.packed.packing import MIN_POSITIONS

    generator = torch.Generator().manual_seed(0)
    for size in (16, 64, 128):
        rows = torch.randn(200, size, generator=generator)
        weight = torch.randn(size, 48, generator=generator)
        whole = rows @ weight
        for count in range(MIN_POSITIONS, 200, 7):
            if not torch.equal(rows[:count] @ weight, whole[:count]):
                return False
    return True
