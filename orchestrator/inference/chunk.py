"""Cuts an input file into chunks of whole lines, by byte offset, and reads a chunk back."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from orchestrator.domain.errors import InvalidData

MAX_CHUNK_LINES = 256


@dataclass(frozen=True)
class Chunk:
    """Lines `first` (from 1) to `first + num_lines - 1`, at bytes `start` to `stop`."""

    start: int
    stop: int
    first: int
    num_lines: int


@dataclass(frozen=True)
class InputFile:
    """A batch input, scanned once."""

    path: Path
    digest: str
    num_lines: int
    line_ends: tuple[int, ...]

    def chunks(self, num_workers: int) -> list[Chunk]:
        """Chunks in order, small enough that every worker gets several."""
        size = max(1, min(MAX_CHUNK_LINES, -(-self.num_lines // (4 * num_workers))))
        starts = (0, *self.line_ends)
        return [
            Chunk(
                starts[first],
                starts[min(first + size, self.num_lines)],
                first + 1,
                min(size, self.num_lines - first),
            )
            for first in range(0, self.num_lines, size)
        ]


def scan(path: Path) -> InputFile:
    """Find every line's end; raise InvalidData if the file is missing or empty."""
    if path.exists() and not path.is_file():
        raise InvalidData(f"{path}: not a file")
    try:
        with path.open("rb") as file:
            digest, ends, position = hashlib.sha256(), [], 0
            for line in file:
                digest.update(line)
                position += len(line)
                ends.append(position)
    except FileNotFoundError as error:
        raise InvalidData(f"{path}: no such file") from error
    except OSError as error:
        raise InvalidData(f"{path}: cannot be read: {error.strerror}") from error
    if not ends:
        raise InvalidData(f"{path}: the file is empty", "Give one JSON request a line.")
    return InputFile(path.absolute(), digest.hexdigest(), len(ends), tuple(ends))


def read_lines(path: Path, chunk: Chunk) -> Iterator[bytes]:
    """The chunk's lines, in order."""
    with path.open("rb") as file:
        file.seek(chunk.start)
        yield from file.read(chunk.stop - chunk.start).split(b"\n")[: chunk.num_lines]
