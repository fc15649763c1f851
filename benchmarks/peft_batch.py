"""PEFT's side of batch inference: one `PeftModel`, an adapter for each version, classification by
candidates of one token each.

Two ways: a request at a time (`set_adapter`, forward), and the strongest honest loop: rows sorted
by adapter and length, batched, logits at the rows' ends alone. Padding stands on the right and no
attention mask is passed (peft_loss.py says why that is exact and the fastest).
"""

import warnings
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from benchmarks.batch_workload import Workload
from benchmarks.peft_loss import kept_logits
from orchestrator.inference.query import Query
from orchestrator.inference.served_prompt import ServedPrompt

Shares = list[Tensor]


class PeftBatch:
    """`base` with an adapter for each of the workload's versions. Shares [C]: of each query's
    candidates, in the queries' order."""

    def __init__(self, base: Any, workload: Workload) -> None:
        self._queries, self._prompts = workload.queries, workload.prompts
        self._num_virtual_tokens = workload.num_virtual_tokens
        self._names = {ref: f"adapter-{place}" for place, ref in enumerate(workload.prompts)}
        self.model = _peft_model(base, workload.prompts, self._names)

    @torch.no_grad()
    def one_by_one(self) -> Shares:
        """A request at a time, as they come."""
        return [self._batch([query])[0] for query in self._queries]

    @torch.no_grad()
    def sorted_batches(self, rows_at_once: int) -> Shares:
        """Rows of an adapter together, like lengths together, so many at once."""
        order = sorted(range(len(self._queries)), key=self._order)
        found: dict[int, Tensor] = {}
        for _, group in groupby(order, key=lambda index: self._queries[index].prompt):
            rows = list(group)
            for first in range(0, len(rows), rows_at_once):
                indices = rows[first : first + rows_at_once]
                shares = self._batch([self._queries[index] for index in indices])
                found.update(zip(indices, shares, strict=True))
        return [found[index] for index in range(len(self._queries))]

    def _order(self, index: int) -> tuple[str, int]:
        query = self._queries[index]
        return query.prompt, len(query.context)

    def _batch(self, queries: Sequence[Query]) -> Shares:
        """Rows of one adapter in one forward pass."""
        prompt = self._prompts[queries[0].prompt]
        self.model.set_adapter(self._names[queries[0].prompt])
        texts = [query.context[self._num_virtual_tokens :] for query in queries]
        ends = [self._num_virtual_tokens + len(text) - 1 for text in texts]
        logits = kept_logits(self.model, texts, ends, 1, self._num_virtual_tokens)[:, 0]
        candidates = torch.tensor([ids[0] for ids in prompt.candidate_ids])
        return list(logits.float().index_select(1, candidates).softmax(-1))


def _peft_model(base: Any, prompts: Mapping[str, ServedPrompt], names: Mapping[str, str]) -> Any:
    from peft import PromptTuningConfig, TaskType, get_peft_model

    model: Any = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for ref, prompt in prompts.items():
            config = PromptTuningConfig(
                task_type=TaskType.CAUSAL_LM,
                num_virtual_tokens=prompt.virtual_tokens.shape[0],
                inference_mode=True,
            )
            if model is None:
                model = get_peft_model(base, config, adapter_name=names[ref])
            else:
                model.add_adapter(names[ref], config)
            weight = model.prompt_encoder[names[ref]].embedding.weight
            weight.data.copy_(prompt.virtual_tokens)
    return model.eval()
