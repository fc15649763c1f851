"""Mixed generation: requests to many versions, beside PEFT's `set_adapter` and `generate`; greedy.

Run as `python -m benchmarks.batch_generation`. Exits 1 if a text differs. With one request a
version PEFT's two loops, a request at a time and rows sorted by adapter in batches, are the same
loop: no two rows share an adapter. No end token is told to either side, so that every answer has
all its tokens. "Tutti" starts each round with a fresh predictor, so that filling its prompt cache
is part of the time; "prompts held" is a predictor that has met the versions before.
"""

import argparse
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.base_folder import base_name, load_packed, load_plain
from benchmarks.batch_workload import Workload, WorkloadMaker
from benchmarks.command import new_parser, positive, run
from benchmarks.comparison import Timing, time_in_turn
from benchmarks.machine import Surroundings, machine_notes
from benchmarks.peft_batch import PeftBatch
from benchmarks.report import at_least, document, seconds, table, write_results
from encoders.packed.packed_model import PackedModel
from encoders.text.tokenization import TextTokenizer
from orchestrator.domain.batch import BatchMode, Decoding
from orchestrator.inference.predictor import Predictor

TARGETS = {16: 6.0, 64: 9.0, 256: 10.0}  # the issue's, by the number of versions
TUTTI, HELD, PEFT = SIDES = ("Tutti", "prompts held", "PEFT")


class PeftGeneration(PeftBatch):
    """A request at a time, each with its adapter."""

    @torch.no_grad()
    def texts(self, num_requests: int, num_tokens: int, tokenizer: TextTokenizer) -> list[str]:
        """What the first requests are answered with."""
        return [self._text(index, num_tokens, tokenizer) for index in range(num_requests)]

    def _text(self, index: int, num_tokens: int, tokenizer: TextTokenizer) -> str:
        query = self._queries[index]
        self.model.set_adapter(self._names[query.prompt])
        ids = torch.tensor([query.context[self._num_virtual_tokens :]])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            said = self.model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=num_tokens,
                do_sample=False,
            )
        return tokenizer.decode(said[0, ids.shape[1] :].tolist()).strip()


@dataclass(frozen=True)
class CaseResult:
    """The times of all requests. PEFT answered `num_peft` of them: each costs it the same work, so
    its time for all of them follows."""

    num_versions: int
    num_tokens: int
    num_peft: int
    num_unequal: int
    timings: dict[str, Timing]

    def times(self, side: str) -> list[float]:
        return [self._factor(side) * each for each in self.timings[side].seconds]

    def ratio(self, side: str) -> float:
        """How many times longer PEFT takes."""
        return self._factor(PEFT) * self.timings[PEFT].median_s / self.timings[side].median_s

    def cpu_ratio(self, side: str) -> float:
        peft, ours = self.timings[PEFT].median_cpu_s, self.timings[side].median_cpu_s
        return self._factor(PEFT) * peft / ours

    def _factor(self, side: str) -> float:
        return self.num_versions / self.num_peft if side == PEFT else 1.0


def measure(folder: Path, arguments: argparse.Namespace) -> bool:
    """All cases, written as they come; False if texts differ."""
    surroundings = Surroundings(arguments.threads)
    packed, tokenizer = load_packed(folder), TextTokenizer.load(folder)
    tokenizer.eos_token_id = None
    results: list[CaseResult] = []
    for num_versions in arguments.versions:
        maker = WorkloadMaker(packed, tokenizer)
        workload = maker.mixed(num_versions, arguments.virtual_tokens)
        plain = load_plain(folder)
        plain.generation_config.eos_token_id = None
        plain.generation_config.pad_token_id = 0
        peft = PeftGeneration(plain, workload)
        for num_tokens in arguments.tokens:
            results.append(_case(packed, peft, workload, num_tokens, arguments))
            print(_line(results[-1]), flush=True)
            facts = surroundings.facts() | {
                "base": base_name(folder),
                "num_virtual_tokens": arguments.virtual_tokens,
                "text_lengths": workload.text_lengths,
                "results": [_figures(result) for result in results],
            }
            markdown = _markdown(facts, results)
            write_results(arguments.output, "batch_generation", facts, markdown)
    print(f"\n{markdown}\nwritten to {arguments.output}")
    return not any(result.num_unequal for result in results)


def _case(
    packed: PackedModel,
    peft: PeftGeneration,
    workload: Workload,
    num_tokens: int,
    arguments: argparse.Namespace,
) -> CaseResult:
    """Compare the texts, then time both sides in turn."""
    decoding = Decoding(max_new_tokens=num_tokens)
    num_versions = len(workload.queries)
    num_peft = min(arguments.peft_requests, num_versions)

    def predictor() -> Predictor:
        return Predictor(packed, workload.tokenizer, workload.prompts)

    def tutti_texts(predictor: Predictor) -> list[str | None]:
        answers = predictor.answer(workload.queries, BatchMode.GENERATE, decoding=decoding)
        return [answer.text for answer in answers]

    def peft_texts() -> list[str]:
        return peft.texts(num_peft, num_tokens, workload.tokenizer)

    held = predictor()
    pairs = zip(tutti_texts(held), peft_texts(), strict=False)
    num_unequal = sum(one != other for one, other in pairs)
    works: dict[str, Callable[[], object]] = {
        TUTTI: lambda: tutti_texts(predictor()),
        HELD: lambda: tutti_texts(held),
        PEFT: peft_texts,
    }
    timings = time_in_turn(works, arguments.repeats)
    return CaseResult(num_versions, num_tokens, num_peft, num_unequal, timings)


def _line(result: CaseResult) -> str:
    return (
        f"{result.num_versions} versions, {result.num_tokens} tokens: PEFT / Tutti "
        f"{result.ratio(TUTTI):.2f} (by processor time {result.cpu_ratio(TUTTI):.2f}), / prompts "
        f"held {result.ratio(HELD):.2f} ({result.cpu_ratio(HELD):.2f}); "
        f"{result.num_unequal} of {result.num_peft} texts differ"
    )


def _figures(result: CaseResult) -> dict[str, Any]:
    return {
        "num_versions": result.num_versions,
        "num_tokens": result.num_tokens,
        "num_peft": result.num_peft,
        "num_unequal": result.num_unequal,
        "timings": {side: asdict(timing) for side, timing in result.timings.items()},
        "ratios": {side: result.ratio(side) for side in (TUTTI, HELD)},
        "cpu_ratios": {side: result.cpu_ratio(side) for side in (TUTTI, HELD)},
        "target": TARGETS.get(result.num_versions),
    }


def _markdown(facts: dict[str, Any], results: Sequence[CaseResult]) -> str:
    rows = [
        [
            str(result.num_versions),
            str(result.num_tokens),
            *(seconds(result.times(side)) for side in SIDES),
            f"{result.ratio(TUTTI):.1f} ({result.cpu_ratio(TUTTI):.1f})",
            f"{result.ratio(HELD):.1f} ({result.cpu_ratio(HELD):.1f})",
            f"{result.num_peft - result.num_unequal} of {result.num_peft}",
        ]
        for result in results
    ]
    columns = ("versions", "new tokens", *(f"{side} s" for side in SIDES))
    ratios = ("PEFT / Tutti", "PEFT / prompts held", "texts equal")
    verdicts = [
        f"- {result.num_versions} versions, {result.num_tokens} new tokens: PEFT / {side} "
        f"{at_least(result.ratio(side), TARGETS[result.num_versions])}."
        for result in results
        if result.num_versions in TARGETS
        for side in (TUTTI, HELD)
    ]
    lengths = facts["text_lengths"]
    requests = (
        f"One request a version, greedily; {facts['num_virtual_tokens']} virtual tokens, texts of "
        f"{sum(lengths) / len(lengths):.0f} tokens on average ({min(lengths)} to {max(lengths)}); "
        "fp32. Without an end token: every answer has all its tokens."
    )
    timing = (
        f"Medians of {len(results[0].timings[PEFT].seconds)} rounds, sides in turn; in brackets "
        'the fastest and the slowest, behind ratios those by processor time. "Tutti" starts with '
        'an empty prompt cache; "prompts held": the versions were met before.'
    )
    peft = (
        "PEFT: `set_adapter` and `generate` for each request. Rows sorted by adapter and batched "
        "are the same loop here, for no two rows share an adapter."
    )
    notes = [requests, timing, peft, f"Base: {facts['base']}."]
    if any(result.num_peft < result.num_versions for result in results):
        notes.insert(
            3,
            "**PEFT's time is extrapolated** where it answered fewer requests than there are (last "
            "column), by their number.",
        )
    return document(
        "Mixed generation: requests to many versions",
        table((*columns, *ratios), rows),
        verdicts,
        notes=[*notes, *machine_notes(facts)],
    )


def _parse() -> argparse.Namespace:
    parser = new_parser("batch_generation", __doc__)
    add = parser.add_argument
    add("--versions", type=positive, nargs="+", default=list(TARGETS), metavar="N")
    add("--tokens", type=positive, nargs="+", default=[8, 32], metavar="N", help="new ones a row")
    add("--virtual-tokens", type=positive, default=16)
    add("--peft-requests", type=positive, default=32, help="answer these with PEFT, and multiply")
    add("--repeats", type=positive, default=3, help="timed rounds")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(run(_parse(), measure))
