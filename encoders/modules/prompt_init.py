"""Where a prompt can start: tables [V, D] for AnchoredPrompt, and the base's embedding scale.

From a text: `fit_table(token_table(embeddings, ids of the text), V)`; from the vocabulary: the
table of `sampled_tokens`; from trained prompts: `mean_of_prompts`. One rule fits any table to V
rows, PEFT's for a text: a longer one is cut, a shorter one begins again from its first row.

The base's embeddings are only ever called, once a function, so they may be sharded (ZeRO-3: call
on every rank alike). Shapes: N tokens, V virtual tokens, D token_dim.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from encoders.errors import EncoderError

SCALE_SAMPLE = 1024  # rows: the RMS of so many is within 1% of all rows'


def token_table(embeddings: nn.Module, token_ids: Sequence[int]) -> Tensor:
    """float32 [N, D] without gradient: the embeddings of tokens, as `embeddings` gives them.

    `embeddings` is the base's `get_input_embeddings()`. Raises EncoderError where there are no ids,
    for an id the base does not embed, and for embeddings that are not finite.
    """
    if not token_ids:
        raise EncoderError("there are no tokens to start from")
    num_embeddings = getattr(embeddings, "num_embeddings", None)
    wrong = [i for i in token_ids if i < 0 or (num_embeddings is not None and i >= num_embeddings)]
    if wrong:
        raise EncoderError(
            f"the token id {wrong[0]} is not among the base's {num_embeddings}: use the base's own "
            "tokenizer"
        )
    device = next((parameter.device for parameter in embeddings.parameters()), None)
    with torch.no_grad():
        table: Tensor = embeddings(torch.tensor(token_ids, device=device))
    return check_table("the base's embeddings", table.to(torch.float32, copy=True))


def sampled_tokens(
    token_ids: Sequence[int], num_virtual_tokens: int, generator: torch.Generator
) -> tuple[int, ...]:
    """`num_virtual_tokens` of `token_ids`, drawn with replacement from `generator` (on the CPU).

    Give ids of real tokens (TextTokenizer.text_ids): embeddings of others were never trained.
    Raises EncoderError where there is none to draw.
    """
    _check_length(num_virtual_tokens)
    if not token_ids:
        raise EncoderError("there are no tokens to draw from")
    places = torch.randint(len(token_ids), (num_virtual_tokens,), generator=generator)
    return tuple(token_ids[place] for place in places.tolist())


def fit_table(table: Tensor, num_virtual_tokens: int) -> Tensor:
    """The table [N, D] cut or repeated to [V, D]. Raises EncoderError for what is no table."""
    _check_length(num_virtual_tokens)
    check_table("the table", table)
    rows = torch.arange(num_virtual_tokens, device=table.device) % len(table)
    return table.detach().index_select(0, rows)


def mean_of_prompts(tables: Sequence[Tensor], num_virtual_tokens: int) -> Tensor:
    """Float32 [V, D]: the mean of prompts' tables [N_i, D], each fitted to V rows first.

    One table of V rows comes back as it is. Raises EncoderError for no table, or for one that is
    not finite or of another D.
    """
    if not tables:
        raise EncoderError("there are no prompts to start from")
    widths = {check_table(f"prompt {i}", table).shape[1] for i, table in enumerate(tables)}
    if len(widths) > 1:
        raise EncoderError(f"the prompts are of different bases: D is one of {sorted(widths)}")
    fitted = [fit_table(table, num_virtual_tokens).to(torch.float32) for table in tables]
    return torch.stack(fitted).mean(0)


def embedding_scale(embeddings: nn.Module, token_ids: Sequence[int]) -> float:
    """The root mean square of the embeddings' values, over a fixed sample of `token_ids`."""
    sample = token_ids[:: -(-len(token_ids) // SCALE_SAMPLE) or 1]
    return float(token_table(embeddings, sample).square().mean().sqrt())


def check_table(name: str, table: Tensor) -> Tensor:
    """`table`, or EncoderError unless it is finite floating-point numbers [1 or more, D]."""
    if table.dim() != 2 or not table.numel():
        raise EncoderError(f"{name} must be a table [V, D], not of the shape {tuple(table.shape)}")
    if not table.is_floating_point() or not bool(table.isfinite().all()):
        raise EncoderError(f"{name} must hold finite floating-point numbers")
    return table


def _check_length(num_virtual_tokens: int) -> None:
    if num_virtual_tokens < 1:
        raise EncoderError(f"num_virtual_tokens is {num_virtual_tokens}; it must be 1 or more")
