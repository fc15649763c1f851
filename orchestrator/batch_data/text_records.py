"""Cuts a stream of bytes into rows of JSONL or CSV, with bounded memory whatever the bytes are.

A row of JSONL is a line; one of CSV goes on over line ends inside quotes (RFC 4180). A row of more
than MAX_ROW_BYTES is counted and dropped while it is read.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum, auto

from orchestrator.domain.dataset import MAX_LINE_CHARS

MAX_ROW_BYTES = MAX_LINE_CHARS
_QUOTE = b'"'


@dataclass(frozen=True)
class TextRecord:
    """`data` without its line end, None where it was too long; `num_bytes` with it. `line`: where
    it begins, from 1. `is_open`: the file ended inside its quotes."""

    line: int
    data: bytes | None
    num_bytes: int
    is_open: bool = False


class _Place(Enum):
    """Where in a CSV row a byte stands."""

    START = auto()  # of a cell
    PLAIN = auto()
    QUOTED = auto()
    CLOSING = auto()  # after a quote in quotes: their end, or the first half of `""`


class Quotes:
    """Follows a CSV row's quotes. One that does not open a cell is a character like others."""

    def __init__(self, delimiter: bytes) -> None:
        self._delimiter, self._place = delimiter, _Place.START

    @property
    def is_open(self) -> bool:
        return self._place is _Place.QUOTED

    def end_row(self) -> None:
        self._place = _Place.START

    def feed(self, piece: bytes) -> None:
        if self._place in (_Place.START, _Place.PLAIN) and _QUOTE not in piece:
            if piece:
                ends_cell = piece.endswith(self._delimiter)
                self._place = _Place.START if ends_cell else _Place.PLAIN
            return
        position = 0
        while position < len(piece):
            position = self._step(piece, position)

    def _step(self, piece: bytes, position: int) -> int:
        """Move the place on from `position`; the position from which to go on."""
        place = self._place
        if place is _Place.PLAIN or place is _Place.QUOTED:
            mark = self._delimiter if place is _Place.PLAIN else _QUOTE
            found = piece.find(mark, position)
            if found < 0:
                return len(piece)
            self._place = _Place.START if place is _Place.PLAIN else _Place.CLOSING
            return found + 1
        is_quote = piece[position : position + 1] == _QUOTE
        self._place = _Place.QUOTED if is_quote else _Place.PLAIN
        return position + is_quote


def split_records(
    chunks: Iterable[bytes],
    first_line: int,
    quotes: Quotes | None,
    on_bytes: Callable[[bytes], None],
) -> Iterator[TextRecord]:
    """The rows of `chunks`. `on_bytes` is given every byte, a row's before that row comes."""
    kept, size, line, next_line = bytearray(), 0, first_line, first_line
    for piece, ends_line in _pieces(chunks):
        on_bytes(piece)
        size += len(piece)
        if quotes is not None:
            quotes.feed(piece if not ends_line else piece[:-1])
        if size <= MAX_ROW_BYTES + 1:
            kept += piece
        else:
            kept.clear()
        next_line += ends_line
        if ends_line and not (quotes is not None and quotes.is_open):
            yield _record(line, kept, size, False)
            kept.clear()
            size, line = 0, next_line
            if quotes is not None:
                quotes.end_row()
    if size:
        yield _record(line, kept, size, quotes is not None and quotes.is_open)


def _record(line: int, kept: bytearray, size: int, is_open: bool) -> TextRecord:
    data = bytes(kept.removesuffix(b"\n")) if len(kept) == size else None
    if data is not None and len(data) > MAX_ROW_BYTES:
        data = None
    return TextRecord(line, data, size, is_open)


def _pieces(chunks: Iterable[bytes]) -> Iterator[tuple[bytes, bool]]:
    """The chunks' bytes cut after each line end, and whether a piece ends with one."""
    for chunk in chunks:
        start = 0
        while (end := chunk.find(b"\n", start)) >= 0:
            yield chunk[start : end + 1], True
            start = end + 1
        if start < len(chunk):
            yield chunk[start:], False
