"""P-tuning templates: text, fields, and virtual tokens around them. Pure Python.

`"{country}:{prompt:10} {continent}"` with answer `continent` reads: the row's country and a colon,
ten virtual tokens, then the answer. Text on the two sides of a virtual token is tokenised apart,
so no token ever spans one; white space right before the answer belongs to the answer (" Africa").
Source: 'GPT Understands, Too' (arXiv 2103.10385), section 3.1: `{prompt:3}{sub}{prompt:3}{obj}`
for causal models; with `mask=True` its form for BERT, `{prompt:3}{sub}{prompt:3}{obj}{prompt:3}.`
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from encoders.errors import TemplateError

PROMPT = "prompt"
MAX_VIRTUAL_TOKENS = 4096
_TOKEN = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

Tokenize = Callable[[str], Sequence[int]]


@dataclass(frozen=True)
class Text:
    """Literal text."""

    text: str


@dataclass(frozen=True)
class Field:
    """The value of a row's field."""

    name: str


@dataclass(frozen=True)
class Prompt:
    """`length` virtual tokens."""

    length: int


@dataclass(frozen=True)
class Special:
    """One of the tokenizer's own tokens, by its id. Chat markup makes them; source text cannot."""

    token_id: int


Piece = Text | Field | Prompt | Special


@dataclass(frozen=True)
class Template:
    """A parsed template: pieces before the answer, the answer's leading white space, the tail.

    In encoded rows a virtual token is a negative number: the i-th one (from 0) is `-(i + 1)`.
    `mask` tells that masks stand in the answer's place; only then may a tail follow it.
    """

    source: str
    pieces: tuple[Piece, ...]
    answer: str
    answer_prefix: str
    tail: tuple[Piece, ...] = ()
    mask: bool = False

    @classmethod
    def parse(
        cls, source: str, answer: str, *, needs_prompt: bool = True, mask: bool = False
    ) -> "Template":
        """Parse `source`; raise TemplateError unless the answer field stands last, once.

        With `mask` (for masked language models) text, fields and virtual tokens may follow it.
        """
        pieces = _split(source)
        at = _answer_place(pieces, source, answer, mask)
        context, prefix = _detach_trailing_space(pieces[:at])
        template = cls(source, context, answer, prefix, tuple(pieces[at + 1 :]), mask)
        if needs_prompt and not template.num_virtual_tokens:
            raise TemplateError(
                f"the template {source!r} has no virtual tokens; add {{prompt:n}} before the "
                f"answer, for example {{prompt:10}}"
            )
        if template.num_virtual_tokens > MAX_VIRTUAL_TOKENS:
            raise TemplateError(
                f"the template has {template.num_virtual_tokens} virtual tokens; "
                f"at most {MAX_VIRTUAL_TOKENS} are allowed"
            )
        if not context and not template.tail:
            raise TemplateError(f"nothing stands before the answer in the template {source!r}")
        return template

    @property
    def num_virtual_tokens(self) -> int:
        return _num_virtual(self.pieces) + _num_virtual(self.tail)

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields a row needs beside the answer, in order of first use."""
        pieces = (*self.pieces, *self.tail)
        return tuple(dict.fromkeys(piece.name for piece in pieces if isinstance(piece, Field)))

    def check_truncate(self, name: str) -> None:
        """Raise TemplateError unless `name` is a field that can give way in an over-long row."""
        if name not in self.fields:
            raise TemplateError(
                f"the field {{{name}}} cannot be cut in the template {self.source!r}; the fields "
                f"beside its answer are: {_listed(list(self.fields))}"
            )

    def encode_context(
        self,
        row: Mapping[str, str],
        tokenize: Tokenize,
        bos_token_id: int | None = None,
    ) -> tuple[int, ...]:
        """Token ids of everything before the answer; virtual tokens are negative (class docstring).

        A given `bos_token_id` opens the first text, as it does when PEFT puts a prompt before it.
        """
        bos = () if bos_token_id is None else (bos_token_id,)
        return _encode(self.pieces, row, tokenize, 0, bos)

    def encode_tail(self, row: Mapping[str, str], tokenize: Tokenize) -> tuple[int, ...]:
        """Token ids of what follows the answer; its virtual tokens are counted on."""
        return _encode(self.tail, row, tokenize, _num_virtual(self.pieces), ())

    def encode_answer(self, answer: str, tokenize: Tokenize) -> tuple[int, ...]:
        """Token ids of an answer with its leading white space; TemplateError if there are none."""
        ids = tuple(tokenize(self.answer_prefix + answer))
        if not answer or not ids:
            raise TemplateError(f"the answer {answer!r} has no tokens")
        return ids


def field_value(row: Mapping[str, str], name: str) -> str:
    """The value of a row's field, or TemplateError with the fields the row has."""
    if name not in row:
        raise TemplateError(f"the row lacks the field {name!r}; it has {_listed(list(row))}")
    return row[name]


def _encode(
    pieces: tuple[Piece, ...],
    row: Mapping[str, str],
    tokenize: Tokenize,
    virtual: int,
    bos: tuple[int, ...],
) -> tuple[int, ...]:
    """Token ids of `pieces`, whose first virtual token is number `virtual`.

    Neighbouring text and fields are one run, tokenised whole; anything else ends it.
    """
    ids: list[int] = []
    run = ""
    for piece in (*pieces, None):
        if isinstance(piece, Text):
            run += piece.text
        elif isinstance(piece, Field):
            run += field_value(row, piece.name)
        else:
            if run:
                ids += [*bos, *tokenize(run)]
                run, bos = "", ()
            if isinstance(piece, Prompt):
                ids += [-(virtual + i + 1) for i in range(piece.length)]
                virtual += piece.length
            elif piece is not None:
                ids.append(piece.token_id)
    return tuple(ids)


def _num_virtual(pieces: tuple[Piece, ...]) -> int:
    return sum(piece.length for piece in pieces if isinstance(piece, Prompt))


def _answer_place(pieces: list[Piece], source: str, answer: str, mask: bool) -> int:
    """Where the answer's field stands, or TemplateError."""
    fields = [piece.name for piece in pieces if isinstance(piece, Field)]
    if answer not in fields:
        raise TemplateError(
            f"the answer field {{{answer}}} is not in the template {source!r}; "
            f"it has {_listed(fields)}"
        )
    if mask and fields.count(answer) > 1:
        raise TemplateError(
            f"the answer field {{{answer}}} must stand once in the template {source!r}; "
            f"it stands {fields.count(answer)} times"
        )
    if not mask and (fields.count(answer) > 1 or pieces[-1] != Field(answer)):
        raise TemplateError(
            f"the answer field {{{answer}}} must come last, and once, in the template "
            f"{source!r}; move it to the end and remove what follows it"
        )
    return pieces.index(Field(answer))


def _split(source: str) -> list[Piece]:
    pieces: list[Piece] = []
    text, end = "", 0
    for match in _TOKEN.finditer(source):
        text += source[end : match.start()]
        end = match.end()
        if match.group() in ("{{", "}}"):
            text += match.group()[0]
            continue
        if text:
            pieces.append(Text(text))
            text = ""
        pieces.append(_placeholder(match.group(1), match.start(), source))
    text += source[end:]
    return [*pieces, Text(text)] if text else pieces


def _placeholder(inner: str | None, at: int, source: str) -> Piece:
    name, colon, length = (inner or "").partition(":")
    if name == PROMPT and colon and length.isascii() and length.isdigit() and len(length) < 6:
        if int(length) > 0:
            return Prompt(int(length))
    elif name != PROMPT and not colon and _NAME.fullmatch(name):
        return Field(name)
    found = "an unmatched brace" if inner is None else f"{{{inner}}}"
    raise TemplateError(
        f"{found} at character {at + 1} of the template {source!r}; allowed are {{field}}, "
        f"{{prompt:n}} with n of 1 or more, and {{{{ or }}}} for a brace"
    )


def _detach_trailing_space(pieces: list[Piece]) -> tuple[tuple[Piece, ...], str]:
    if not pieces or not isinstance(pieces[-1], Text):
        return tuple(pieces), ""
    text = pieces[-1].text
    stripped = text.rstrip()
    kept = [*pieces[:-1], Text(stripped)] if stripped else pieces[:-1]
    return tuple(kept), text[len(stripped) :]


def _listed(names: list[str]) -> str:
    return ", ".join(f"{{{name}}}" for name in names) if names else "no fields"
