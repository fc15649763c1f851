"""Random tiny transformers models of every architecture and task, prompts for them, real PEFT's
run of one prompt as the oracle, and a ragged batch to compare on."""

import copy
import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from encoders.config import CONFIG_CLASSES, PeftType, PromptLearningConfig
from encoders.prompted.prompted_model import PromptedModel
from tests.encoders.conftest import ARCHITECTURES as DECODERS
from tests.encoders.conftest import VOCABULARY, WIDTH

_SIZES = {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "intermediate_size": 64}
_BERT = {
    **_SIZES,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "type_vocab_size": 2,
    "pad_token_id": 1,
}
_WINDOW = {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]}

#: transformers' config class and its arguments, by architecture.
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: DECODERS[name] for name in ("llama", "qwen3", "gpt2", "gpt_neox")},
    "mistral": ("MistralConfig", {**DECODERS["mistral"][1], "sliding_window": 6}),
    "gemma2": ("Gemma2Config", {**DECODERS["gemma2"][1], **_WINDOW}),
    "gemma3": ("Gemma3TextConfig", {**DECODERS["gemma2"][1], **_WINDOW}),
    "bert": ("BertConfig", _BERT),
    "roberta": ("RobertaConfig", _BERT),
    "t5": (
        "T5Config",
        {
            "vocab_size": VOCABULARY,
            "d_model": WIDTH,
            "d_kv": 8,
            "d_ff": 64,
            "num_layers": 2,
            "num_heads": 4,
            "decoder_start_token_id": 0,
        },
    ),
    "bart": (
        "BartConfig",
        {
            "vocab_size": VOCABULARY,
            "d_model": WIDTH,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 64,
            "decoder_ffn_dim": 64,
            "max_position_embeddings": 64,
            "scale_embedding": True,
        },
    ),
}
_BART = ARCHITECTURES["bart"][1]
#: Models that do something in a way of their own.
ODD: dict[str, tuple[str, dict[str, Any]]] = {
    "mpt": (  # its attention does not say that it is causal; positions by ALiBi
        "MptConfig",
        {
            "vocab_size": VOCABULARY,
            "d_model": WIDTH,
            "n_layers": 2,
            "n_heads": 4,
            "max_seq_len": 64,
        },
    ),
    "falcon": (  # one key head for all queries
        "FalconConfig",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": WIDTH,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
        },
    ),
    "distilbert": (  # takes neither positions nor a past
        "DistilBertConfig",
        {"vocab_size": VOCABULARY, "dim": WIDTH, "hidden_dim": 64, "n_layers": 2, "n_heads": 4},
    ),
    "pegasus": ("PegasusConfig", _BART),  # scales the embeddings of token ids alone
    "m2m100": ("M2M100Config", {**_BART, "pad_token_id": 1}),  # positions cannot be given to it
}
ARCHITECTURES |= ODD
CAUSAL = ("llama", "qwen3", "mistral", "gpt2", "gpt_neox", "gemma2", "gemma3")
ENCODERS = ("bert", "roberta")
SEQ2SEQ = ("t5", "bart")

_AUTO = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "FEATURE_EXTRACTION": "AutoModel",
    "MASKED_LM": "AutoModelForMaskedLM",
}

#: Kinds of prompts, and the fields that keep them small.
KINDS: dict[str, dict[str, Any]] = {
    "P_TUNING": {"encoder_hidden_size": 8},
    "PROMPT_TUNING": {},
    "PREFIX_TUNING": {},
    "MULTITASK_PROMPT_TUNING": {"num_tasks": 3, "num_ranks": 2},
}
#: Names, kinds and lengths of prompts that one batch mixes.
MIXED = {
    "short": ("P_TUNING", 2),
    "prefix": ("PREFIX_TUNING", 3),
    "long": ("PROMPT_TUNING", 5),
    "tasks": ("MULTITASK_PROMPT_TUNING", 4),
    "wide": ("PREFIX_TUNING", 6),
}
EXACT = 1e-5  # what padding and neighbours may change
#: One batch: the lengths of its texts, and each row's prompt and task.
LENGTHS = (4, 9, 2, 7, 5)
NAMES = tuple(MIXED)
TASKS = torch.tensor([0, 2, 1, 2, 0])


def make_base(architecture: str, task: str = "CAUSAL_LM", **changes: Any) -> Any:
    """A random model; the same arguments give the same weights."""
    import transformers

    kind, arguments = ARCHITECTURES[architecture]
    tied = {
        "tie_word_embeddings": architecture not in CAUSAL
    }  # a tied decoder repeats its last token
    arguments = {"pad_token_id": 0, **arguments, **tied, **changes}
    config = getattr(transformers, kind)(**arguments)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(transformers, _AUTO[task]).from_config(config)
        for parameter in model.parameters():  # no dead biases; far positions and prompts matter
            parameter.data += 0.15 * torch.randn_like(parameter)
    return model.eval()


@functools.cache
def shared_base(architecture: str, task: str = "CAUSAL_LM", **changes: Any) -> Any:
    """`make_base`, made once: a PromptedModel leaves it as it is."""
    return make_base(architecture, task, **changes)


def kind_config(kind: str, num_virtual_tokens: int, **fields: Any) -> PromptLearningConfig:
    fields = {"num_virtual_tokens": num_virtual_tokens, **KINDS[kind], **fields}
    return CONFIG_CLASSES[PeftType(kind)](**fields)


def add_mixed(model: PromptedModel, names: tuple[str, ...], **fields: Any) -> None:
    """Attach prompts of MIXED, with random weights that matter."""
    for name in names:
        kind, length = MIXED[name]
        prompt = model.add_prompt(name, kind_config(kind, length, **fields))
        randomise(prompt.encoder, seed=len(name))


def mixed_model(architecture: str, task: str = "CAUSAL_LM", **fields: Any) -> PromptedModel:
    """A base with all prompts of MIXED attached."""
    model = PromptedModel(shared_base(architecture, task))
    add_mixed(model, NAMES, **fields)
    return model


def randomise(module: torch.nn.Module, seed: int) -> None:
    """Weights of a scale at which every prompt changes the output, and none saturates it."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        parameter.data.copy_(0.5 * noise)


def peft_pair(
    base: Any, kind: str, num_virtual_tokens: int, task: str | None, **fields: Any
) -> tuple[PromptedModel, Any]:
    """The same prompt, named "it", on a PromptedModel and on real PEFT; both in eval mode."""
    import peft

    config = kind_config(kind, num_virtual_tokens, task_type=task, **fields)
    theirs_config = getattr(peft, type(config).__name__)(
        num_virtual_tokens=num_virtual_tokens, task_type=task, **{**KINDS[kind], **fields}
    )
    theirs = peft.get_peft_model(copy.deepcopy(base), theirs_config).eval()
    randomise(theirs.prompt_encoder["default"], seed=3)
    ours = PromptedModel(base)
    prompt = ours.add_prompt("it", config)
    prompt.encoder.load_state_dict(theirs.prompt_encoder["default"].state_dict())
    return ours, theirs


def task_ids_for(kind: str, num_rows: int) -> dict[str, Tensor]:
    """The argument that a multitask prompt needs."""
    if kind != "MULTITASK_PROMPT_TUNING":
        return {}
    return {"task_ids": torch.arange(num_rows) % 3}


def ragged(side: str, lengths: tuple[int, ...], seed: int = 0) -> tuple[Tensor, Tensor]:
    """Ids [B, T] and mask [B, T] of random texts, padded on the `left`, the `right` or `both`."""
    generator = torch.Generator().manual_seed(seed)
    width = max(lengths) + (2 if side == "both" else 0)
    ids = torch.zeros(len(lengths), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        start = {"left": width - length, "right": 0, "both": min(row % 3, width - length)}[side]
        text = torch.randint(3, VOCABULARY, (length,), generator=generator)
        ids[row, start : start + length] = text
        mask[row, start : start + length] = 1
    return ids, mask


def gradients(model: PromptedModel, loss: Tensor) -> dict[str, Tensor]:
    """Gradients of the prompts' parameters; zero where there is none."""
    names, parameters = zip(*model.prompts.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    return {
        name: torch.zeros_like(parameter) if gradient is None else gradient
        for name, parameter, gradient in zip(names, parameters, found, strict=True)
    }


def difference(one: Tensor, other: Tensor) -> float:
    """The largest absolute difference; NaN counts as infinite."""
    assert one.shape == other.shape
    return float((one.detach() - other.detach()).abs().nan_to_num(torch.inf).max())


def largest_difference(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    assert set(one) == set(other)
    return max(difference(one[name], other[name]) for name in one)


@contextmanager
def unchanged(base: Any) -> Iterator[None]:
    """Fail if the base's bytes, its modules, hooks or config differ afterwards."""
    before = _fingerprint(base)
    yield
    assert _fingerprint(base) == before


def _fingerprint(base: Any) -> Any:
    import hashlib

    digest = hashlib.sha256()
    for name, tensor in sorted(base.state_dict().items()):
        digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
    hooks = [
        (name, len(module._forward_hooks), len(module._forward_pre_hooks), sorted(vars(module)))
        for name, module in base.named_modules()
    ]
    has_gradient = [name for name, each in base.named_parameters() if each.grad is not None]
    return digest.hexdigest(), hooks, base.config.to_dict(), base.training, has_gradient
