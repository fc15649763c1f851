"""EMBED: a row's hidden state where its answer would begin.

It is the last layer's, behind the final norm, at the last position of the context: the vector that
the head turns into the next token's logits, as in transformers' `last_hidden_state[:, -1]`.
"""

from collections.abc import Sequence

from torch import Tensor

from encoders.packed.packing import PackedBatch, PackedRow
from orchestrator.inference.passes import Passes
from orchestrator.inference.query import Answer, Query


def embed(passes: Passes, queries: Sequence[Query]) -> list[Answer]:
    """The embedding of each query's context, as long as the base is wide, in float32."""
    rows = [PackedRow(query.prompt, query.context) for query in queries]
    found = passes.run(rows, passes.model.hidden, _context_ends)
    return [Answer(embedding=tuple(each.tolist())) for each in found]


def _context_ends(hidden: Tensor, batch: PackedBatch) -> list[Tensor]:
    """Hidden states [D] at the ends of the rows' contexts."""
    return list(hidden[: len(batch.row_segments)].float())
