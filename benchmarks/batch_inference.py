"""Classification by many versions, beside PEFT: mixed requests, one large task, and held prompts.

Run as `python -m benchmarks.batch_inference`. Exits 1 if the sides' shares of candidates differ.
Both sides get token ids and give each row's shares; loading and tokenising are no part of it. A
"first call" computes the prompts' keys and values as well, the others find them held. Generation
is measured in batch_generation.py.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.base_folder import base_name, load_packed, load_plain
from benchmarks.batch_workload import Workload, WorkloadMaker
from benchmarks.command import new_parser, not_negative, positive, run
from benchmarks.comparison import Timing, time_in_turn
from benchmarks.machine import Surroundings, machine_notes
from benchmarks.peft_batch import PeftBatch
from benchmarks.report import at_least, document, seconds, table, write_results
from encoders.packed.packed_model import PackedModel
from encoders.text.tokenization import TextTokenizer
from orchestrator.inference.predictor import Predictor

MIXED_TARGETS = {16: 6.0, 64: 9.0, 256: 10.0}  # the issue's, by the number of versions
LARGE_TARGET, HELD_TARGET = 2.0, 5.0
MAX_DIFFERENCE = 1e-4  # of a share, in float32
TUTTI, FIRST_CALL, PACKED = "Tutti", "Tutti, first call", "Tutti, prompts packed"
ONE_BY_ONE, BATCHED = "PEFT, a request at a time", "PEFT, sorted, {} rows at once"

Side = Callable[[], list[Tensor]]  # each query's shares of its candidates


@dataclass(frozen=True)
class Case:
    """Sides that answer the same queries; the first is compared with the fastest of `opponents`."""

    title: str
    target: float | None
    workload: Workload
    sides: Mapping[str, Side]
    opponents: Sequence[str]
    note: str = ""


@dataclass(frozen=True)
class CaseResult:
    """How far a case's shares are apart at most, and the times of its sides."""

    title: str
    target: float | None
    opponents: Sequence[str]
    note: str
    num_virtual_tokens: int
    text_lengths: list[int]
    difference: float
    timings: Mapping[str, Timing]

    @property
    def is_exact(self) -> bool:
        return self.difference <= MAX_DIFFERENCE

    @property
    def strongest(self) -> str:
        return min(self.opponents, key=lambda side: self.timings[side].median_s)

    def ratio(self, side: str) -> float:
        return self.timings[side].median_s / self.timings[TUTTI].median_s

    def cpu_ratio(self, side: str) -> float:
        return self.timings[side].median_cpu_s / self.timings[TUTTI].median_cpu_s

    @property
    def verdict(self) -> str:
        ratio = self.ratio(self.strongest)
        found = f"{ratio:.2f}x" if self.target is None else at_least(ratio, self.target)
        return f"{self.strongest} / {TUTTI} {found}"


class Sides:
    """Makes the sides of a case on one base."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.packed = load_packed(folder)
        self.maker = WorkloadMaker(self.packed, TextTokenizer.load(folder))

    def mixed(self, num_versions: int, num_virtual_tokens: int) -> Case:
        workload = self.maker.mixed(num_versions, num_virtual_tokens)
        peft = PeftBatch(load_plain(self._folder), workload)
        sides = {
            TUTTI: held(self.packed, workload),
            FIRST_CALL: partial(_first_call, self.packed, workload),
            ONE_BY_ONE: peft.one_by_one,
        }
        title = f"{num_versions} versions, a request each"
        note = "No two rows share an adapter, so sorting and batching them would change nothing."
        return Case(title, MIXED_TARGETS.get(num_versions), workload, sides, [ONE_BY_ONE], note)

    def large(self, num_rows: int, batch_sizes: Sequence[int]) -> Case:
        workload = self.maker.long(1, num_rows, 20, 36.0, 0.6)
        peft = PeftBatch(load_plain(self._folder), workload)
        batched: dict[str, Side] = {
            BATCHED.format(size): partial(peft.sorted_batches, size) for size in batch_sizes
        }
        sides = {TUTTI: held(self.packed, workload), **batched}
        return Case(f"one version, {num_rows} rows", LARGE_TARGET, workload, sides, list(batched))

    def held(self, num_versions: int) -> Case:
        workload = self.maker.long(num_versions, 1, 100, 16.0, 0.0)
        sides = {
            TUTTI: held(self.packed, workload),
            PACKED: held(self.packed, workload, held_bytes=0),
        }
        title = f"100 virtual tokens, texts of 16, {num_versions} versions, a request each"
        return Case(title, HELD_TARGET, workload, sides, [PACKED])


def held(model: PackedModel, workload: Workload, held_bytes: int = 1 << 30) -> Side:
    """A predictor that lives on from call to call."""
    predictor = Predictor(model, workload.tokenizer, workload.prompts, held_bytes=held_bytes)
    return partial(_shares, predictor, workload)


def _first_call(model: PackedModel, workload: Workload) -> list[Tensor]:
    return _shares(Predictor(model, workload.tokenizer, workload.prompts), workload)


def _shares(predictor: Predictor, workload: Workload) -> list[Tensor]:
    answers = predictor.answer(workload.queries)
    return [torch.tensor(list((answer.scores or {}).values())) for answer in answers]


def compare(case: Case, repeats: int) -> CaseResult:
    """Check that all sides give the same shares, then time them in turn."""
    found = {name: side() for name, side in case.sides.items()}
    difference = max(
        float((ours - theirs).abs().max())
        for shares in found.values()
        for ours, theirs in zip(found[TUTTI], shares, strict=True)
    )
    is_exact = difference <= MAX_DIFFERENCE
    timings = time_in_turn(case.sides, repeats) if is_exact else {}
    return CaseResult(
        case.title,
        case.target,
        case.opponents,
        case.note,
        case.workload.num_virtual_tokens,
        case.workload.text_lengths,
        difference,
        timings,
    )


def measure(folder: Path, arguments: argparse.Namespace) -> bool:
    """All cases, written as they come; False if one is not exact."""
    surroundings = Surroundings(arguments.threads)
    sides = Sides(folder)
    results: list[CaseResult] = []
    for make in _cases(sides, arguments):
        results.append(compare(make(), arguments.repeats))
        last = results[-1]
        print(f"{last.title}: shares differ by {last.difference:.1e}", flush=True)
        if not last.is_exact:
            return False
        print(last.verdict, flush=True)
        facts = surroundings.facts() | {
            "base": base_name(folder),
            "results": [_figures(result) for result in results],
        }
        markdown = _markdown(facts, results)
        write_results(arguments.output, "batch_inference", facts, markdown)
    print(f"\n{markdown}\nwritten to {arguments.output}")
    return True


def _cases(sides: Sides, arguments: argparse.Namespace) -> list[Callable[[], Case]]:
    """Made when their turn comes: a case holds a copy of the base for PEFT."""
    cases: list[Callable[[], Case]] = [
        partial(sides.mixed, count, arguments.virtual_tokens) for count in arguments.versions
    ]
    if arguments.held_versions:
        cases.append(partial(sides.held, arguments.held_versions))
    if arguments.rows:
        cases.append(partial(sides.large, arguments.rows, arguments.batch_sizes))
    return cases


def _figures(result: CaseResult) -> dict[str, Any]:
    return {
        "case": result.title,
        "num_virtual_tokens": result.num_virtual_tokens,
        "text_lengths": result.text_lengths,
        "difference": result.difference,
        "timings": {side: asdict(timing) for side, timing in result.timings.items()},
        "ratios": {side: result.ratio(side) for side in result.timings},
        "cpu_ratios": {side: result.cpu_ratio(side) for side in result.timings},
        "target": result.target,
        "verdict": result.verdict,
    }


def _markdown(facts: Mapping[str, Any], results: Sequence[CaseResult]) -> str:
    rounds = len(results[0].timings[TUTTI].seconds)
    notes = [
        f"Medians of {rounds} rounds, sides in turn; in brackets the fastest and the slowest.",
        "Real texts of the example tasks, virtual tokens first, candidates of one token; fp32.",
        "PEFT: logits at the rows' ends alone, no attention mask.",
        f"Shares of the candidates differ by at most {MAX_DIFFERENCE:g} between all sides.",
        f"Base: {facts['base']}.",
        *machine_notes(facts),
    ]
    blocks = [block for result in results for block in _blocks(result)]
    return document("Batch inference: classification by many versions", *blocks, notes=notes)


def _blocks(result: CaseResult) -> list[list[str]]:
    lengths = result.text_lengths
    rows = [
        [
            side,
            seconds(result.timings[side].seconds),
            f"{len(lengths) / result.timings[side].median_s:.1f}",
            f"{result.ratio(side):.2f}",
            f"{result.cpu_ratio(side):.2f}",
        ]
        for side in result.timings
    ]
    columns = ("side", "s", "rows/s", f"/ {TUTTI}", "by processor time")
    texts = f"{sum(lengths) / len(lengths):.1f} tokens ({min(lengths)} to {max(lengths)})"
    verdict = [
        f"- {result.verdict}.",
        f"- {result.num_virtual_tokens} virtual tokens; texts of {texts} on average.",
    ]
    if result.note:
        verdict.append(f"- {result.note}")
    return [[f"## {result.title}"], table(columns, rows, num_left=1), verdict]


def _parse() -> argparse.Namespace:
    parser = new_parser("batch_inference", __doc__)
    add = parser.add_argument
    add("--versions", type=positive, nargs="*", default=[16, 64, 256], metavar="N")
    add("--virtual-tokens", type=positive, default=20, help="of the mixed cases")
    add("--held-versions", type=not_negative, default=64, help="0: leave the held prompts out")
    add("--rows", type=not_negative, default=512, help="of the large task; 0: leave it out")
    add(
        "--batch-sizes", type=positive, nargs="+", default=[8, 32], help="PEFT's, in the large task"
    )
    add("--repeats", type=positive, default=3, help="timed rounds")
    arguments = parser.parse_args()
    if not (arguments.versions or arguments.held_versions or arguments.rows):
        parser.error("nothing to measure: all cases are left out")
    return arguments


if __name__ == "__main__":
    sys.exit(run(_parse(), measure))
