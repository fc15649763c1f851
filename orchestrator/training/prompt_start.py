"""Where the prompts of a gang start: embeddings of the base, looked up before training.

Under ZeRO-3 a call of the embeddings is a collective act, so every rank calls them the same number
of times, whatever its own tasks ask for. N tokens, D token_dim.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn

from encoders.modules.prompt_init import embedding_scale, sampled_tokens, token_table
from encoders.text.tokenization import TextTokenizer
from orchestrator.domain.errors import InvalidData
from orchestrator.domain.task_spec import TaskSpec


@dataclass(frozen=True)
class PromptStart:
    """A table [N, D], to be fitted to the prompt's length, and the base's embedding scale."""

    table: Tensor
    scale: float


def start_tokens(spec: TaskSpec, tokenizer: TextTokenizer) -> tuple[int, ...]:
    """The tokens the spec's prompt starts at, by its seed alone; () where it starts at random.

    Raises InvalidData for a text without tokens.
    """
    init = spec.encoder.init
    if init is None:
        return ()
    if init.text is None:
        generator = torch.Generator().manual_seed(spec.training.seed)
        length = spec.parsed_template().num_virtual_tokens
        return sampled_tokens(tokenizer.text_ids, length, generator)
    ids = tokenizer.encode(init.text)
    if not ids:
        raise InvalidData(f"task {spec.task}: encoder.init.text {init.text!r} has no tokens")
    return ids


def look_up_starts(
    specs: Mapping[str, TaskSpec], tokenizer: TextTokenizer, embeddings: nn.Module
) -> dict[str, PromptStart]:
    """The starts of those specs that ask for one, under their keys, by two calls of `embeddings`.

    Raises InvalidData, and EncoderError for a token the base does not embed.
    """
    wanted = {key: start_tokens(spec, tokenizer) for key, spec in specs.items()}
    wanted = {key: ids for key, ids in wanted.items() if ids}
    scale = embedding_scale(embeddings, tokenizer.text_ids)
    lengths = [len(ids) for ids in wanted.values()]
    all_ids = tuple(chain.from_iterable(wanted.values())) or tokenizer.text_ids[:1]
    tables = token_table(embeddings, all_ids).split(lengths or [1])
    return {
        key: PromptStart(table, scale) for key, table in zip(wanted, tables, strict=bool(wanted))
    }
