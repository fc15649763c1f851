"""Generation one row alone, by transformers and by running the row whole for each token: what
continuous batching must equal."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from encoders.packed.packed_model import PackedModel
from encoders.packed.packing import PackedRow, pack
from encoders.text.collation import embed_rows
from encoders.text.tokenization import TextTokenizer
from orchestrator.inference.answer_end import AnswerEnd
from orchestrator.inference.generation import Generated, GenerationRow


@torch.no_grad()
def by_transformers(
    model: Any,
    tokenizer: TextTokenizer,
    row: GenerationRow,
    virtual_tokens: Mapping[str, Tensor],
    stop_strings: tuple[str, ...] = (),
    **arguments: Any,
) -> Generated:
    """`generate` of a plain model with eager attention, with this row's embeddings."""
    end = AnswerEnd(tokenizer, stop_strings)
    ids = torch.tensor([row.context])
    embeds = embed_rows(ids, model.get_input_embeddings(), virtual_tokens[row.prompt])
    said = model.generate(
        inputs_embeds=embeds,
        attention_mask=torch.ones_like(ids),
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=0,
        **{
            "max_new_tokens": row.max_new_tokens,
            "do_sample": False,
            "return_dict_in_generate": True,
            "output_logits": True,
            "output_scores": True,
            "stopping_criteria": [lambda ids, _: torch.tensor([*map(end.is_reached, ids)])],
            **arguments,
        },
    )
    new = said.sequences[0].tolist()
    if arguments.get("num_beams", 1) > 1:
        del new[int((said.beam_indices[0] >= 0).sum()) :]
        log_prob = float(said.sequences_scores[0]) * len(new)
    else:
        steps = zip(said.logits, new, strict=True)
        log_prob = sum(float(logits[0].log_softmax(-1)[token]) for logits, token in steps)
    return Generated(end.text(new), math.exp(log_prob), len(new))


@torch.no_grad()
def by_whole_rows(
    model: PackedModel,
    tokenizer: TextTokenizer,
    row: GenerationRow,
    virtual_tokens: Mapping[str, Tensor],
) -> Generated:
    """Greedily; every token runs the whole row again, packed, as Tutti once did."""
    lengths = {name: len(table) for name, table in virtual_tokens.items()}
    said: list[int] = []
    log_prob = 0.0
    while len(said) < row.max_new_tokens and tokenizer.eos_token_id not in said:
        batch = pack([PackedRow(row.prompt, (*row.context, *said))], lengths)
        log_probs = model.logits(batch, virtual_tokens)[0].log_softmax(-1)
        said.append(int(log_probs.argmax()))
        log_prob += float(log_probs.max())
    return Generated(AnswerEnd(tokenizer).text(said), math.exp(log_prob), len(said))
