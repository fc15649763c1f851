"""Promotion gates: a small, safe language of comparisons over a version's metrics.

    accuracy >= 0.6 and accuracy > incumbent.accuracy

Names are metrics of the candidate version; `incumbent.NAME` is the same metric of the version the
alias points at. A comparison with the incumbent holds when there is none. Nothing is evaluated as
Python: the text is parsed to a tree of `and`, `or`, `not`, comparisons, names and numbers only.
"""

import ast
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass

MAX_LENGTH = 1000
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
    """Whether a gate holds; `failures` names each false comparison with both numbers."""

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
        _check(_tree(source))
        return cls(source)

    def judge(self, metrics: Mapping[str, float], incumbent: Mapping[str, float] | None) -> Verdict:
        """Evaluate against the candidate's metrics and the incumbent's (None: no incumbent)."""
        failures: list[str] = []
        passed = _holds(_tree(self.source), metrics, incumbent, failures)
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
        raise ValueError(f"{ast.unparse(node)!r} is not a condition; {_LANGUAGE}")


def _check_operand(node: ast.expr) -> None:
    if isinstance(node, ast.Name) and node.id != INCUMBENT:
        return
    if _is_incumbent(node):
        return
    is_negative = isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub)
    value = node.operand if is_negative and isinstance(node, ast.UnaryOp) else node
    if isinstance(value, ast.Constant) and type(value.value) in (int, float):
        return
    raise ValueError(f"{ast.unparse(node)!r} is not a metric or number; {_LANGUAGE}")


def _is_incumbent(node: ast.expr) -> bool:
    return (
        isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == INCUMBENT
    )


def _holds(
    node: ast.expr,
    metrics: Mapping[str, float],
    incumbent: Mapping[str, float] | None,
    failures: list[str],
) -> bool:
    if isinstance(node, ast.BoolOp):
        results = [_holds(value, metrics, incumbent, failures) for value in node.values]
        return all(results) if isinstance(node.op, ast.And) else any(results)
    if isinstance(node, ast.UnaryOp):
        inner: list[str] = []
        if _holds(node.operand, metrics, incumbent, inner):
            failures.append(f"{ast.unparse(node)} is false")
            return False
        return True
    assert isinstance(node, ast.Compare)
    return _compare(node, metrics, incumbent, failures)


def _compare(
    node: ast.Compare,
    metrics: Mapping[str, float],
    incumbent: Mapping[str, float] | None,
    failures: list[str],
) -> bool:
    operands = [node.left, *node.comparators]
    if incumbent is None and any(_is_incumbent(operand) for operand in operands):
        return True
    values = [_value(operand, metrics, incumbent or {}) for operand in operands]
    for index, op in enumerate(node.ops):
        symbol, compare = _COMPARE[type(op)]
        left, right = values[index], values[index + 1]
        if left is None or right is None or not compare(left, right):
            failures.append(
                f"{ast.unparse(operands[index])} {symbol} {ast.unparse(operands[index + 1])} "
                f"is false: {_shown(left)} against {_shown(right)}"
            )
            return False
    return True


def _value(
    node: ast.expr, metrics: Mapping[str, float], incumbent: Mapping[str, float]
) -> float | None:
    if isinstance(node, ast.Name):
        return metrics.get(node.id)
    if isinstance(node, ast.Attribute):
        return incumbent.get(node.attr)
    return float(ast.literal_eval(node))


def _shown(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4g}"
