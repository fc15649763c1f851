"""Promotion gates: a small, safe language of comparisons over a version's metrics.

    accuracy >= 0.6 and accuracy > incumbent.accuracy

Names are metrics of the candidate version; `incumbent.NAME` is the same metric of the version the
alias points at. A comparison with the incumbent holds when there is none, and one with a metric
that was not measured does not, also under `not`. Nothing is evaluated as Python: the text is parsed
to a tree of `and`, `or`, `not`, comparisons, names and numbers only.
"""

import ast
import operator
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass

MAX_LENGTH = 1000
MAX_SHOWN = 60
INCUMBENT = "incumbent"

_COMPARE: dict[type[ast.cmpop], tuple[str, Callable[[float, float], bool]]] = {
    ast.Lt: ("<", operator.lt),
    ast.LtE: ("<=", operator.le),
    ast.Gt: (">", operator.gt),
    ast.GtE: (">=", operator.ge),
    ast.Eq: ("==", operator.eq),
    ast.NotEq: ("!=", operator.ne),
}
_LANGUAGE = "a gate has metric names, incumbent.NAME, numbers, < <= > >= == !=, and, or, not, ( )"


@dataclass(frozen=True)
class Verdict:
    """Whether a gate holds; `failures` names each comparison that does not, with both numbers."""

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
            raise ValueError(f"the gate is nested too deeply; {_LANGUAGE}") from error
        return cls(source)

    def judge(self, metrics: Mapping[str, float], incumbent: Mapping[str, float] | None) -> Verdict:
        """Evaluate against the candidate's metrics and the incumbent's (None: no incumbent)."""
        failures: list[str] = []
        passed = _holds(_tree(self.source), True, metrics, incumbent, failures)
        return Verdict(passed, () if passed else tuple(failures))


def _tree(source: str) -> ast.expr:
    try:
        return ast.parse(source.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"cannot read the gate {source!r}; {_LANGUAGE}") from error


def _check(node: ast.expr) -> None:
    """Refuse everything but the gate language."""
    if isinstance(node, ast.BoolOp):
        for value in node.values:
            _check(value)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        _check(node.operand)
    elif isinstance(node, ast.Compare) and all(type(op) in _COMPARE for op in node.ops):
        for operand in (node.left, *node.comparators):
            _check_operand(operand)
    else:
        raise ValueError(f"{_source(node)} is not a condition; {_LANGUAGE}")


def _check_operand(node: ast.expr) -> None:
    if isinstance(node, ast.Name) and node.id != INCUMBENT:
        return
    if _is_incumbent(node):
        return
    is_negative = isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub)
    value = node.operand if is_negative and isinstance(node, ast.UnaryOp) else node
    number = value.value if isinstance(value, ast.Constant) else None
    if isinstance(number, int | float) and not isinstance(number, bool):
        if abs(number) > sys.float_info.max:
            raise ValueError(f"{_source(node)} is too large a number")
        return
    raise ValueError(f"{_source(node)} is not a metric or number; {_LANGUAGE}")


def _source(node: ast.expr) -> str:
    text = ast.unparse(node)
    return repr(text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "...")


def _is_incumbent(node: ast.expr) -> bool:
    return (
        isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == INCUMBENT
    )


def _holds(
    node: ast.expr,
    wanted: bool,
    metrics: Mapping[str, float],
    incumbent: Mapping[str, float] | None,
    failures: list[str],
) -> bool:
    """Whether `node` is `wanted`: a `not` turns what is wanted of the comparisons under it."""
    if isinstance(node, ast.BoolOp):
        results = [_holds(value, wanted, metrics, incumbent, failures) for value in node.values]
        return all(results) if isinstance(node.op, ast.And) == wanted else any(results)
    if isinstance(node, ast.UnaryOp):
        return _holds(node.operand, not wanted, metrics, incumbent, failures)
    assert isinstance(node, ast.Compare)
    operands = [node.left, *node.comparators]
    links = zip(operands, node.ops, operands[1:], strict=False)
    results = [_compare(*link, wanted, metrics, incumbent, failures) for link in links]
    return all(results) if wanted else any(results)


def _compare(
    left: ast.expr,
    op: ast.cmpop,
    right: ast.expr,
    wanted: bool,
    metrics: Mapping[str, float],
    incumbent: Mapping[str, float] | None,
    failures: list[str],
) -> bool:
    if incumbent is None and (_is_incumbent(left) or _is_incumbent(right)):
        return True
    symbol, compare = _COMPARE[type(op)]
    first = _value(left, metrics, incumbent or {})
    second = _value(right, metrics, incumbent or {})
    if first is not None and second is not None and compare(first, second) == wanted:
        return True
    failures.append(
        f"{'' if wanted else 'not '}{ast.unparse(left)} {symbol} {ast.unparse(right)} is false: "
        f"{_shown(first)} against {_shown(second)}"
    )
    return False


def _value(
    node: ast.expr, metrics: Mapping[str, float], incumbent: Mapping[str, float]
) -> float | None:
    if isinstance(node, ast.Name):
        return metrics.get(node.id)
    if isinstance(node, ast.Attribute):
        return incumbent.get(node.attr)
    return float(ast.literal_eval(node))


def _shown(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.6g}"
