"""What a gate compares: numbers, texts and durations, and the names that stand for them.

A name is one of FACTS, or else a metric; `metrics.NAME` is always a metric. `incumbent.NAME` is the
same of the version that the alias points at. Only values of one kind are compared, texts only for
being equal: what could never hold is refused when the gate is read.
"""

import ast
import difflib
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Value = float | str
Kind = Literal["number", "text", "duration"]

INCUMBENT = "incumbent"
METRICS = "metrics."
MAX_SHOWN = 60
#: Facts of a version by name. Durations are in seconds.
FACTS: Mapping[str, Kind] = {
    "age": "duration",
    "approvals": "number",
    "base": "text",
    "base.fingerprint": "text",
    "code.version": "text",
    "digest": "text",
    "seed": "number",
    "spec.digest": "text",
    **{f"{split}.digest": "text" for split in ("train", "eval", "test")},
    **{f"{split}.rows": "number" for split in ("train", "eval", "test")},
}
LANGUAGE = (
    f"a gate compares metrics, {', '.join(FACTS)}, and incumbent.NAME with each other, with "
    "numbers, 'texts' and durations like 30d; it has < <= > >= == !=, and, or, not, ( )"
)

_UNITS_S = {"w": 604_800, "d": 86_400, "h": 3600, "m": 60, "s": 1}
_NUMBER = r"[0-9]{1,12}(?:\.[0-9]{1,12})?"
_DURATION = re.compile(
    rf"""('(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*")|(?<![\w.])({_NUMBER})([smhdw])\b"""
)
_MARKED = re.compile(rf"\('({_NUMBER}[smhdw])',\)")


@dataclass(frozen=True)
class Term:
    """One side of a comparison: a name (of the incumbent's, or of the candidate's), or a value."""

    text: str
    kind: Kind
    value: Value | None = None
    name: str = ""
    is_incumbent: bool = False

    def look_up(
        self, candidate: Mapping[str, Value], incumbent: Mapping[str, Value]
    ) -> Value | None:
        """What the term stands for; None: not measured, not known."""
        if not self.name:
            return self.value
        return (incumbent if self.is_incumbent else candidate).get(self.name)

    def show(self, value: Value | None) -> str:
        """A value of this term, for a refusal."""
        if value is None:
            return "unknown" if self.name in FACTS else "not measured"
        if isinstance(value, str):
            return value[:12] if re.fullmatch("[0-9a-f]{64}", value) else repr(cut(value))
        return _duration(value) if self.kind == "duration" else f"{value:.6g}"


def mark_durations(source: str) -> str:
    """`source` as Python that can be parsed: 30d becomes ('30d',), which is nothing else here."""
    return _DURATION.sub(lambda m: m[1] or f"('{m[2]}{m[3]}',)", source)


def source_of(node: ast.expr) -> str:
    """A node as it is written."""
    return _MARKED.sub(r"\1", ast.unparse(node))


def cut(text: str) -> str:
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."


def read_term(node: ast.expr) -> Term:
    """The term that `node` is, or ValueError."""
    text = source_of(node)
    if (name := _dotted(node)) is not None:
        return _named(name, text)
    match node:
        case ast.Tuple(elts=[ast.Constant(value=str(marked))]) if _MARKED.fullmatch(
            f"('{marked}',)"
        ):
            return Term(text, "duration", float(marked[:-1]) * _UNITS_S[marked[-1]])
        case ast.Constant(value=str(value)):
            return Term(text, "text", value)
        case ast.Constant(value=value) | ast.UnaryOp(ast.USub(), ast.Constant(value=value)):
            return _number(node, value, text)
    raise ValueError(f"{cut(text)!r} is not a metric, number, text or duration; {LANGUAGE}")


def check_comparable(left: Term, symbol: str, right: Term) -> None:
    """Refuse a comparison that makes no sense, with ValueError."""
    pair = f"{cut(left.text)} {symbol} {cut(right.text)}"
    if left.kind != right.kind:
        raise ValueError(
            f"{pair!r} compares a {left.kind} with a {right.kind}; a gate's values are compared "
            "with their own kind (a duration is written 30d, 12h, 90m)"
        )
    if left.kind == "text" and symbol not in ("==", "!="):
        raise ValueError(f"{pair!r}: a gate compares texts with == and != only")


def _dotted(node: ast.expr) -> str | None:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (before := _dotted(node.value)) is not None:
        return f"{before}.{node.attr}"
    return None


def _named(dotted: str, text: str) -> Term:
    is_incumbent = dotted.startswith(f"{INCUMBENT}.")
    name = dotted.removeprefix(f"{INCUMBENT}.")
    if name in FACTS:
        return Term(text, FACTS[name], name=name, is_incumbent=is_incumbent)
    metric = name.removeprefix(METRICS)
    if "." in metric or metric == INCUMBENT or metric in FACTS:
        near = difflib.get_close_matches(name[:100], FACTS, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"{cut(text)!r} is not a name{hint}; {LANGUAGE}")
    return Term(text, "number", name=metric, is_incumbent=is_incumbent)


def _number(node: ast.expr, value: object, text: str) -> Term:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ValueError(f"{cut(text)!r} is not a metric, number, text or duration; {LANGUAGE}")
    if abs(value) > sys.float_info.max:
        raise ValueError(f"{cut(text)!r} is too large a number")
    return Term(text, "number", float(ast.literal_eval(node)))


def _duration(seconds: float) -> str:
    """In the largest of d, h, m and s of which it is at least one."""
    unit = next((unit for unit in "dhm" if abs(seconds) >= _UNITS_S[unit]), "s")
    return f"{seconds / _UNITS_S[unit]:.4g}{unit}"
