"""Every block of encoders/README.md runs as it stands, in an empty folder."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]
README = (ROOT / "encoders" / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> tuple[Any, Path]:
    """A loader of fresh bases, and a folder that the blocks share, as a reader's would be."""
    from transformers import AutoModelForCausalLM

    def load() -> Any:
        return AutoModelForCausalLM.from_pretrained(tiny_base)

    return load, tmp_path_factory.mktemp("reader")


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_a_block_runs(
    number: int, tiny: tuple[Any, Path], tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoTokenizer

    load, folder = tiny
    monkeypatch.chdir(folder)
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    exec(BLOCKS[number], {"base": load(), "tokenizer": tokenizer, "torch": torch})


def test_blocks_are_short_and_every_named_test_is_there() -> None:
    assert len(BLOCKS) >= 8
    assert max(len(block.splitlines()) for block in BLOCKS) <= 14
    table = README[README.index("| point |") :]
    files = set(re.findall(r"`(test_\w+)`", table))
    known = {path.stem for path in (ROOT / "tests" / "encoders").rglob("test_*.py")}
    assert files <= known
