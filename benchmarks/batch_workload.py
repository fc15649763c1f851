"""What batch inference is measured on: real short texts, and versions with random virtual tokens.

Virtual tokens stand first, the one template that PEFT has too. They are the base's embeddings of
random tokens, so that their size is a trained prompt's. Candidates have one token each.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import cycle, islice

import torch
from torch import Tensor

from benchmarks.example_tasks import TASKS
from encoders.packed.packed_model import PackedModel
from encoders.text.tokenization import TextTokenizer
from orchestrator.domain.prompt_version import Lineage, PromptVersion
from orchestrator.inference.query import Query
from orchestrator.inference.served_prompt import ServedPrompt, row_encoder

#: Templates behind the virtual tokens, with the field and the candidates of the example tasks.
KINDS = (
    (
        "{country} is in the continent of {answer}",
        "country-continent",
        ("Africa", "Asia", "Europe"),
    ),
    ("{city} is a city in {answer}", "city-country", ("Mexico", "Japan", "India", "Canada")),
    ("The word {word} is a {answer}", "word-class", ("noun", "verb", "adjective")),
    ('"{definition}" describes a kind of {answer}', "definition-class", ("person", "plant", "act")),
)
LONG = '"{text}" is about a {answer}'  # its text is cut to a length


@dataclass(frozen=True)
class Workload:
    """Versions ready to serve, one request a query, and the base's tokenizer."""

    prompts: dict[str, ServedPrompt]
    queries: list[Query]
    tokenizer: TextTokenizer

    @property
    def num_virtual_tokens(self) -> int:
        return next(iter(self.prompts.values())).virtual_tokens.shape[0]

    @property
    def text_lengths(self) -> list[int]:
        return [sum(token >= 0 for token in query.context) for query in self.queries]


class WorkloadMaker:
    """Makes workloads of `num_virtual_tokens` on a base; the same ones for the same arguments."""

    def __init__(self, model: PackedModel, tokenizer: TextTokenizer) -> None:
        self._model, self._tokenizer = model, tokenizer

    def mixed(self, num_versions: int, num_virtual_tokens: int) -> Workload:
        """One request to each of `num_versions`, of the four kinds in turn."""
        texts = [cycle(_rows(task)) for _, task, _ in KINDS]
        prompts: dict[str, ServedPrompt] = {}
        queries: list[Query] = []
        for number in range(num_versions):
            template, task, candidates = KINDS[number % len(KINDS)]
            prompt = self._version(task, number, template, candidates, num_virtual_tokens)
            prompts[prompt.version.ref] = prompt
            context = prompt.encode(next(texts[number % len(KINDS)]))
            queries.append(Query(prompt.version.ref, context))
        return Workload(prompts, queries, self._tokenizer)

    def long(
        self,
        num_versions: int,
        rows_each: int,
        num_virtual_tokens: int,
        mean_length: float,
        spread: float,
    ) -> Workload:
        """`rows_each` requests to each version, of definitions strung together and cut so that the
        text of a row has a log-normal number of tokens, its template's among them."""
        random = torch.Generator().manual_seed(0)
        definitions = " ".join(row["definition"] for row in _rows("definition-class"))
        words = self._tokenizer.encode(definitions)
        prompts: dict[str, ServedPrompt] = {}
        queries: list[Query] = []
        for number in range(num_versions):
            candidates = ("person", "place", "thing")
            prompt = self._version("topic", number, LONG, candidates, num_virtual_tokens)
            prompts[prompt.version.ref] = prompt
            around = len(prompt.encode({"text": "a"})) - num_virtual_tokens - 1
            for _ in range(rows_each):
                z = float(torch.randn(1, generator=random))
                length = math.exp(math.log(mean_length) - spread**2 / 2 + spread * z)
                first = int(torch.randint(len(words), (1,), generator=random))
                count = max(1, round(length) - around)
                text = self._tokenizer.decode(list(islice(cycle(words), first, first + count)))
                queries.append(Query(prompt.version.ref, prompt.encode({"text": text.strip()})))
        return Workload(prompts, queries, self._tokenizer)

    def _version(
        self, task: str, number: int, template: str, candidates: Sequence[str], length: int
    ) -> ServedPrompt:
        config = {
            "template": f"{{prompt:{length}}}{template}",
            "answer": "answer",
            "candidates": list(candidates),
        }
        lineage = Lineage("benchmark", "0" * 64, {}, {}, "", 0, "")
        made = datetime(2026, 1, 1, tzinfo=UTC)
        version = PromptVersion(task, number + 1, "0" * 64, config, {}, {}, lineage, made)
        rows = row_encoder(config, self._tokenizer, None)
        candidate_ids = tuple(rows.encode_answer(each) for each in candidates)
        if any(len(ids) != 1 for ids in candidate_ids):
            raise ValueError(f"a candidate of {candidates} has more than one token in this base")
        virtual = self._virtual_tokens(number, length)
        return ServedPrompt(version, rows, virtual, tuple(candidates), candidate_ids, 1)

    @torch.no_grad()
    def _virtual_tokens(self, number: int, length: int) -> Tensor:
        random = torch.Generator().manual_seed(number)
        table = self._model.model.get_input_embeddings().weight
        tokens = torch.randint(len(table), (length,), generator=random)
        return table[tokens].clone()


def _rows(task: str) -> list[dict[str, str]]:
    lines = (TASKS / "data" / f"{task}.train.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]
