from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import ByT5Tokenizer

from encoders.config import MultitaskPromptTuningConfig
from encoders.errors import ConfigError, EncoderError, WeightsError
from encoders.modules.multitask_prompt_embedding import MultitaskPromptEmbedding
from tests.encoders.parity import assert_modules_equal

peft = pytest.importorskip("peft")

FROM_SOURCE = ["AVERAGE_SOURCE_TASKS", "EXACT_SOURCE_TASK", "ONLY_SOURCE_SHARED"]
SIZES = {"num_virtual_tokens": 3, "token_dim": 4, "num_ranks": 2}


def both(
    seed: int, base: nn.Module | None = None, **fields: Any
) -> tuple[MultitaskPromptEmbedding, nn.Module]:
    fields.setdefault("num_transformer_submodules", 1)
    torch.manual_seed(seed)
    ours = MultitaskPromptEmbedding(MultitaskPromptTuningConfig(**fields), base)
    torch.manual_seed(seed)
    config = peft.MultitaskPromptTuningConfig(**fields)
    theirs = peft.tuners.multitask_prompt_tuning.MultitaskPromptEmbedding(config, base)
    return ours, theirs


@given(
    st.fixed_dictionaries(
        {
            "num_virtual_tokens": st.integers(1, 6),
            "token_dim": st.integers(1, 9),
            "num_transformer_submodules": st.integers(1, 2),
            "num_ranks": st.integers(1, 3),
            "num_tasks": st.integers(1, 4),
        }
    ),
    st.lists(st.integers(0, 3), min_size=1, max_size=5),
    st.integers(0, 2**31),
)
@settings(max_examples=40, deadline=None)
def test_embedding_equals_pefts_bit_for_bit(
    sizes: dict[str, int], tasks: list[int], seed: int
) -> None:
    ours, theirs = both(seed, **sizes)
    task_ids = torch.tensor(tasks) % sizes["num_tasks"]
    indices = torch.arange(ours.embedding.num_embeddings).expand(len(task_ids), -1)
    assert_modules_equal(ours, theirs, indices, task_ids)
    for task, tokens in zip(task_ids.tolist(), ours(indices, task_ids), strict=True):
        assert torch.equal(ours.virtual_tokens(task), tokens)


def test_attributes_are_pefts() -> None:
    ours, theirs = both(0, num_tasks=5, **SIZES)
    names = "num_tasks num_ranks num_virtual_tokens num_transformer_submodules token_dim"
    for name in names.split():
        assert getattr(ours, name) == getattr(theirs, name)


def test_a_start_from_text_equals_pefts(tmp_path: Path) -> None:
    ByT5Tokenizer().save_pretrained(tmp_path)
    fields = {
        **SIZES,
        "num_tasks": 2,
        "prompt_tuning_init": "TEXT",
        "prompt_tuning_init_text": "ab",
        "tokenizer_name_or_path": str(tmp_path),
    }
    ours, theirs = both(0, nn.Embedding(384, 4), **fields)
    assert_modules_equal(ours, theirs, torch.arange(3)[None], torch.tensor([1]))


def source_tensors(num_tasks: int = 3) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "prompt_embeddings": torch.randn(3, 4, generator=generator),
        "prefix_task_cols": torch.randn(num_tasks, 3, 2, generator=generator),
        "prefix_task_rows": torch.randn(num_tasks, 2, 4, generator=generator),
    }


def write_source(folder: Path, **changes: Tensor) -> str:
    path = folder / "adapter_model.safetensors"
    save_file(source_tensors() | changes, path)
    return str(path)


@pytest.mark.parametrize("start", FROM_SOURCE)
@pytest.mark.parametrize("task", [0, 2])
def test_a_start_from_a_source_prompt_equals_pefts(tmp_path: Path, start: str, task: int) -> None:
    fields = {
        **SIZES,
        "num_tasks": 4 if start == "ONLY_SOURCE_SHARED" else 1,
        "prompt_tuning_init": start,
        "prompt_tuning_init_task": task,
        "prompt_tuning_init_state_dict_path": write_source(tmp_path, other=torch.ones(1)),
    }
    ours, theirs = both(7, **fields)
    assert_modules_equal(ours, theirs, torch.arange(3)[None], torch.tensor([0]))
    assert torch.equal(ours.embedding.weight, source_tensors()["prompt_embeddings"])


def start_from(path: str | None, start: str = "EXACT_SOURCE_TASK", **fields: Any) -> None:
    MultitaskPromptEmbedding(
        MultitaskPromptTuningConfig(
            **{**SIZES, **fields},
            prompt_tuning_init=start,
            prompt_tuning_init_state_dict_path=path,
        )
    )


@pytest.mark.parametrize("start", FROM_SOURCE)
def test_a_source_that_is_not_named_is_the_value_error_of_peft(start: str) -> None:
    with pytest.raises(ConfigError, match="state_dict_path needs to be specified with") as ours:
        start_from(None, start)
    with pytest.raises(ValueError, match="state_dict_path needs to be specified with") as theirs:
        config = peft.MultitaskPromptTuningConfig(
            **SIZES, num_transformer_submodules=1, prompt_tuning_init=start
        )
        peft.tuners.multitask_prompt_tuning.MultitaskPromptEmbedding(config, None)
    assert str(ours.value) == str(theirs.value)


@pytest.mark.parametrize("name", ["adapter_model.bin", "source.pt", "x.safetensors.pkl", ""])
def test_a_source_that_may_be_a_pickle_is_refused_unread(tmp_path: Path, name: str) -> None:
    class Bomb:
        def __reduce__(self) -> object:
            return (pytest.fail, ("the pickle was run",))

    path = tmp_path / (name or "pickle")
    torch.save({"prompt_embeddings": Bomb()}, path)
    with pytest.raises(ConfigError, match=r"only a .safetensors file is read.*save the source"):
        start_from(str(path))
    path.rename(tmp_path / "lie.safetensors")
    with pytest.raises(WeightsError, match=r"lie.safetensors: not a safetensors file"):
        start_from(str(tmp_path / "lie.safetensors"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"prompt_embeddings": torch.ones(4, 3)},
            r"prompt_embeddings.*\(4, 3\), expected .* \(3, 4\)",
        ),
        ({"prefix_task_cols": torch.ones(3, 2)}, r"prefix_task_cols.*\(3, 2\)"),
        ({"prefix_task_rows": torch.ones(3, 1, 4)}, r"expected .* \(3, 2, 4\)"),
        ({"prompt_embeddings": torch.full((3, 4), float("nan"))}, "NaN"),
        ({"prefix_task_rows": torch.ones(0, 2, 4)}, r"expected .* \(1, 2, 4\)"),
        ({"prompt_embeddings": torch.ones(3, 4, dtype=torch.int64)}, "is int64"),
        ({"prefix_task_cols": torch.ones(2, 3, 2)}, r"prompt_tuning_init_task is 2.* 0 to 1"),
    ],
)
def test_a_source_of_other_shapes_or_values_is_refused(
    tmp_path: Path, changes: dict[str, Tensor], message: str
) -> None:
    with pytest.raises(EncoderError, match=message):
        start_from(write_source(tmp_path, **changes), prompt_tuning_init_task=2)


def test_a_source_without_a_tensor_or_a_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "source.safetensors"
    with pytest.raises(WeightsError, match="cannot be opened"):
        start_from(str(path))
    save_file({"prompt_embeddings": torch.ones(3, 4)}, path)
    with pytest.raises(WeightsError, match="prefix_task_cols"):
        start_from(str(path))
    start_from(str(path), "ONLY_SOURCE_SHARED")


def test_the_factors_of_a_source_are_for_one_task_as_in_peft(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="num_tasks is 2; with .* it must be 1"):
        start_from(write_source(tmp_path), num_tasks=2)


def test_inference_mode_needs_no_source() -> None:
    fields = {**SIZES, "prompt_tuning_init": "EXACT_SOURCE_TASK", "inference_mode": True}
    prompt = MultitaskPromptEmbedding(MultitaskPromptTuningConfig(**fields))
    assert prompt.virtual_tokens().shape == (3, 4)


def test_task_ids_none_is_the_value_error_of_peft() -> None:
    ours, theirs = both(0, **SIZES)
    with pytest.raises(EncoderError, match="task_ids cannot be None") as mine:
        ours(torch.arange(3)[None], None)
    with pytest.raises(ValueError, match="task_ids cannot be None") as other:
        theirs(torch.arange(3)[None], None)
    assert str(mine.value) == str(other.value)


@pytest.mark.parametrize(
    ("task_ids", "message"),
    [
        (torch.tensor([2]), r"are \[2\]; allowed are 0 to 1"),
        (torch.tensor([0, -1]), "allowed are 0 to 1"),
        (torch.tensor([1 << 40]), "allowed are 0 to 1"),
        (torch.tensor([0.0]), "int64"),
        (torch.tensor([True]), "int64"),
        (torch.tensor(0), "one for each row"),
        (torch.tensor([[0]]), "one for each row"),
    ],
)
def test_task_ids_that_name_no_task_are_refused(task_ids: Tensor, message: str) -> None:
    prompt = MultitaskPromptEmbedding(MultitaskPromptTuningConfig(**SIZES, num_tasks=2))
    with pytest.raises(EncoderError, match=message):
        prompt(torch.arange(3)[None], task_ids)


def test_virtual_tokens_of_no_task_are_refused() -> None:
    prompt = MultitaskPromptEmbedding(MultitaskPromptTuningConfig(**SIZES, num_tasks=2))
    with pytest.raises(EncoderError, match=r"\[2\]; allowed are 0 to 1"):
        prompt.virtual_tokens(2)


def test_the_table_looked_up_is_not_changed_in_place() -> None:
    """PEFT multiplies what its lookup returned in place; a hook would see it change."""
    prompt = MultitaskPromptEmbedding(MultitaskPromptTuningConfig(**SIZES))
    seen: list[Tensor] = []
    prompt.embedding.register_forward_hook(lambda *args: seen.append(args[2]))
    prompt(torch.arange(3)[None], torch.tensor([0]))
    assert torch.equal(seen[0][0], prompt.embedding.weight)


def test_absurdly_many_tasks_are_refused_before_memory_is_taken() -> None:
    config = MultitaskPromptTuningConfig(**SIZES | {"num_tasks": 1 << 24, "num_ranks": 1 << 24})
    with pytest.raises(ConfigError, match="too large"):
        MultitaskPromptEmbedding(config)
