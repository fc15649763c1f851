"""Filters of prompt versions: a small, safe language of comparisons, parsed to a tree.

    metrics.accuracy > 0.8 and base = smollm2-135m and not (alias = production or age > 30d)

`not` is pushed down to the comparisons, so one with a metric that was not measured is false, also
under `not` (as in gates). Nothing here knows SQL; values never become part of a statement's text.
"""

import difflib
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from orchestrator.domain.errors import InvalidInput

MAX_LENGTH = 1000
MAX_DEPTH = 40
MAX_NUMBER = 999_999_999
METRICS = "metrics."
REMEDY = (
    "A filter compares metrics.NAME, base, task, alias, job, number, created or age with a value, "
    "and has and, or, not, ( ): 'metrics.accuracy > 0.8 and age < 30d'."
)

Symbol = Literal["=", "!=", "<", "<=", ">", ">="]
Value = float | int | str | datetime | timedelta

#: What `not` makes of a comparison.
OPPOSITE: Mapping[Symbol, Symbol] = {
    "=": "!=",
    "!=": "=",
    "<": ">=",
    "<=": ">",
    ">": "<=",
    ">=": "<",
}
_SYMBOLS: Mapping[str, Symbol] = {**{symbol: symbol for symbol in OPPOSITE}, "==": "="}
_TOKEN = re.compile(r"\s*(?:(==|[<>!]=|[<>=()])|'([^']*)'|\"([^\"]*)\"|([^\s()<>=!'\"]+)|(\S))")
_AGE = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,6})?)([smhdw])")
_AGE_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


@dataclass(frozen=True)
class Comparison:
    """`field` is `metrics`, whose name is then `metric`, or one of FIELDS."""

    field: str
    symbol: Symbol
    value: Value
    metric: str | None = None


@dataclass(frozen=True)
class Combination:
    """Parts of which all hold (`and`), or any (`or`)."""

    word: Literal["and", "or"]
    parts: tuple["VersionFilter", ...]


VersionFilter = Comparison | Combination


@dataclass(frozen=True)
class _Token:
    """A symbol, a word, or quoted text; `place` counts characters from 1."""

    text: str
    place: int
    kind: Literal["symbol", "word", "quoted", "wrong", "end"]


def parse_filter(source: str) -> VersionFilter:
    """Parse `source`, or raise InvalidInput saying which part is wrong and what is allowed."""
    if len(source) > MAX_LENGTH:
        raise InvalidInput(
            f"the filter has {len(source)} characters; at most {MAX_LENGTH} are allowed", REMEDY
        )
    return _Parser(_tokens(source)).parse()


def all_of(parts: tuple[VersionFilter, ...]) -> VersionFilter | None:
    """The filter of which all `parts` are; None if there is none."""
    return Combination("and", parts) if len(parts) > 1 else next(iter(parts), None)


def _tokens(source: str) -> list[_Token]:
    found = []
    for match in _TOKEN.finditer(source):
        symbol, single, double, word, wrong = match.groups()
        place = match.start(match.lastindex or 0) + 1
        if symbol is not None:
            found.append(_Token(symbol, place, "symbol"))
        elif word is not None:
            found.append(_Token(word, place, "word"))
        elif wrong is not None:
            found.append(_Token(wrong, place, "wrong"))
        else:
            found.append(_Token(single if single is not None else double, place - 1, "quoted"))
    return [*found, _Token("", len(source) + 1, "end")]


class _Parser:
    """Recursive descent; `negated` says whether an odd number of `not` stands around."""

    def __init__(self, tokens: list[_Token]) -> None:
        self._tokens, self._next = tokens, 0

    def parse(self) -> VersionFilter:
        tree = self._either(False, 0)
        if self._token.kind != "end":
            raise _wrong(self._token, "expected `and`, `or` or the end")
        return tree

    @property
    def _token(self) -> _Token:
        return self._tokens[self._next]

    def _take(self) -> _Token:
        token = self._token
        self._next += 1
        return token

    def _takes(self, word: str) -> bool:
        is_it = self._token.kind != "quoted" and self._token.text.lower() == word
        self._next += is_it
        return is_it

    def _either(self, negated: bool, depth: int) -> VersionFilter:
        parts = [self._each(negated, depth)]
        while self._takes("or"):
            parts.append(self._each(negated, depth))
        return parts[0] if len(parts) == 1 else Combination(_word("or", negated), tuple(parts))

    def _each(self, negated: bool, depth: int) -> VersionFilter:
        parts = [self._one(negated, depth)]
        while self._takes("and"):
            parts.append(self._one(negated, depth))
        return parts[0] if len(parts) == 1 else Combination(_word("and", negated), tuple(parts))

    def _one(self, negated: bool, depth: int) -> VersionFilter:
        if depth > MAX_DEPTH:
            raise _wrong(self._token, f"nested deeper than {MAX_DEPTH} levels")
        if self._takes("not"):
            return self._one(not negated, depth + 1)
        if self._takes("("):
            inner = self._either(negated, depth + 1)
            if not self._takes(")"):
                raise _wrong(self._token, "expected `and`, `or` or `)`")
            return inner
        return self._comparison(negated)

    def _comparison(self, negated: bool) -> Comparison:
        field, metric, read, symbols = _field(self._take())
        symbol = self._take()
        if _SYMBOLS.get(symbol.text) not in symbols or symbol.kind != "symbol":
            raise _wrong(symbol, f"after {field} expected one of {' '.join(symbols)}")
        value = self._take()
        if value.kind not in ("word", "quoted"):
            raise _wrong(value, f"expected a value for {field}; quote text with spaces")
        asked = _SYMBOLS[symbol.text]
        return Comparison(field, OPPOSITE[asked] if negated else asked, read(value), metric)


def _word(word: Literal["and", "or"], negated: bool) -> Literal["and", "or"]:
    """De Morgan: what joins the parts once `not` has gone down into them."""
    if not negated:
        return word
    return "or" if word == "and" else "and"


Reader = Callable[[_Token], Value]
Symbols = tuple[Symbol, ...]


def _field(token: _Token) -> tuple[str, str | None, Reader, Symbols]:
    """A field's name, its metric, how its values are read, and how it can be compared."""
    if token.kind == "word" and token.text.startswith(METRICS) and token.text != METRICS:
        return "metrics", token.text.removeprefix(METRICS), _number, tuple(OPPOSITE)
    if token.kind == "word" and token.text in FIELDS:
        return token.text, None, *FIELDS[token.text]
    allowed = f"{METRICS}NAME, {', '.join(FIELDS)}"
    near = difflib.get_close_matches(token.text, FIELDS, n=1)
    hint = f"did you mean {near[0]}?" if near else f"allowed are {allowed}"
    if token.kind == "word" and not near:
        hint += f" (a metric is written {METRICS}{token.text[:40]})"
    raise _wrong(token, f"not a field; {hint}")


def _number(token: _Token) -> float:
    try:
        value = float(token.text)
    except ValueError:
        value = math.nan  # refused with the others that are no number
    if not math.isfinite(value):
        raise _wrong(token, "a metric is compared with a number")
    return value


def _whole(token: _Token) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", token.text):
        raise _wrong(token, f"a version's number is a whole number up to {MAX_NUMBER}")
    return int(token.text)


def _text(token: _Token) -> str:
    if not token.text:
        raise _wrong(token, "a name has at least one character")
    return token.text


def _time(token: _Token) -> datetime:
    try:
        return datetime.fromisoformat(token.text).astimezone()
    except (ValueError, OverflowError, OSError) as error:
        why = "a time is written 2026-01-31 or 2026-01-31T12:00:00+01:00"
        raise _wrong(token, why) from error


def _age(token: _Token) -> timedelta:
    match = _AGE.fullmatch(token.text)
    if match is None:
        raise _wrong(token, "an age is a number with s, m, h, d or w, as in 30d")
    age = timedelta(**{_AGE_UNITS[match[2]]: float(match[1])})
    if age > timedelta(days=36_500):
        raise _wrong(token, "an age is at most 36500d")
    return age


_EQUAL: Symbols = ("=", "!=")
_ORDER: Symbols = ("<", "<=", ">", ">=")
FIELDS: Mapping[str, tuple[Reader, Symbols]] = {
    "base": (_text, _EQUAL),
    "task": (_text, _EQUAL),
    "alias": (_text, _EQUAL),
    "job": (_text, _EQUAL),
    "number": (_whole, tuple(OPPOSITE)),
    "created": (_time, _ORDER),
    "age": (_age, _ORDER),
}


def _wrong(token: _Token, why: str) -> InvalidInput:
    if token.kind == "end":
        found = "the filter ends too early"
    else:
        found = repr(token.text if len(token.text) <= 60 else f"{token.text[:57]}...")
    return InvalidInput(f"the filter is wrong at character {token.place}: {found}: {why}", REMEDY)
