"""Promotion gates: a small, safe language of comparisons over a version.

    accuracy >= 0.6 and accuracy > incumbent.accuracy and eval.digest == incumbent.eval.digest
    age < 30d and approvals >= 2 and base == 'smollm2-135m'

A comparison with the incumbent holds when there is none, and one with a metric that was not
measured does not, also under `not`. Nothing is evaluated as Python: the text is parsed to a tree of
`and`, `or`, `not`, comparisons, and the terms of gate_term.py only.
"""

import ast
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.domain.gate_term import (
    LANGUAGE,
    Term,
    Value,
    check_comparable,
    cut,
    mark_durations,
    read_term,
    source_of,
)

MAX_LENGTH = 1000

_COMPARE: dict[type[ast.cmpop], tuple[str, Callable[[Any, Any], bool]]] = {
    ast.Lt: ("<", operator.lt),
    ast.LtE: ("<=", operator.le),
    ast.Gt: (">", operator.gt),
    ast.GtE: (">=", operator.ge),
    ast.Eq: ("==", operator.eq),
    ast.NotEq: ("!=", operator.ne),
}
Facts = Mapping[str, Value]


@dataclass(frozen=True)
class Verdict:
    """Whether a gate holds; `failures` names each comparison that does not, with both values."""

    passed: bool
    failures: tuple[str, ...] = ()


@dataclass(frozen=True)
class Gate:
    """A parsed gate condition."""

    source: str

    @classmethod
    def parse(cls, source: str) -> "Gate":
        """Parse `source`, or raise ValueError saying which part is not allowed."""
        if len(source) > MAX_LENGTH:
            raise ValueError(f"the gate has {len(source)} characters; at most {MAX_LENGTH}")
        try:
            _check(_tree(source))
        except RecursionError as error:
            raise ValueError(f"the gate is nested too deeply; {LANGUAGE}") from error
        return cls(source)

    def judge(self, candidate: Facts, incumbent: Facts | None) -> Verdict:
        """Evaluate against the metrics and facts of the candidate and of the incumbent (None: there
        is no incumbent)."""
        failures: list[str] = []
        passed = _Judge(candidate, incumbent, failures).holds(_tree(self.source), True)
        return Verdict(passed, () if passed else tuple(failures))


def _tree(source: str) -> ast.expr:
    try:
        return ast.parse(mark_durations(source.strip()), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"cannot read the gate {source!r}; {LANGUAGE}") from error


def _check(node: ast.expr) -> None:
    """Refuse everything but the gate language."""
    if isinstance(node, ast.BoolOp):
        for value in node.values:
            _check(value)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        _check(node.operand)
    elif isinstance(node, ast.Compare) and all(type(op) in _COMPARE for op in node.ops):
        for left, op, right in _links(node):
            check_comparable(left, _COMPARE[type(op)][0], right)
    else:
        raise ValueError(f"{cut(source_of(node))!r} is not a condition; {LANGUAGE}")


def _links(node: ast.Compare) -> list[tuple[Term, ast.cmpop, Term]]:
    """The comparisons of a chain: a < b < c is two."""
    terms = [read_term(operand) for operand in (node.left, *node.comparators)]
    return list(zip(terms, node.ops, terms[1:], strict=False))


@dataclass(frozen=True)
class _Judge:
    """Walks a gate's tree and notes every comparison that does not hold."""

    candidate: Facts
    incumbent: Facts | None
    failures: list[str]

    def holds(self, node: ast.expr, wanted: bool) -> bool:
        """Whether `node` is `wanted`: a `not` turns what is wanted of the comparisons under it."""
        if isinstance(node, ast.BoolOp):
            results = [self.holds(value, wanted) for value in node.values]
            return all(results) if isinstance(node.op, ast.And) == wanted else any(results)
        if isinstance(node, ast.UnaryOp):
            return self.holds(node.operand, not wanted)
        assert isinstance(node, ast.Compare)
        results = [self._compare(*link, wanted) for link in _links(node)]
        return all(results) if wanted else any(results)

    def _compare(self, left: Term, op: ast.cmpop, right: Term, wanted: bool) -> bool:
        if self.incumbent is None and (left.is_incumbent or right.is_incumbent):
            return True
        symbol, compare = _COMPARE[type(op)]
        first, second = (
            term.look_up(self.candidate, self.incumbent or {}) for term in (left, right)
        )
        if first is not None and second is not None and compare(first, second) == wanted:
            return True
        self.failures.append(
            f"{'' if wanted else 'not '}{left.text} {symbol} {right.text} is false: "
            f"{left.show(first)} against {right.show(second)}"
        )
        return False
