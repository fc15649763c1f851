"""Cuts rows into shards while they are read, each with the digest of its own bytes."""

import hashlib

from orchestrator.batch_data.batch_input import Shard

MAX_SHARD_BYTES = 1 << 25


class ShardCutter:
    """Give it a file's start, then for each row its bytes and its extent; then the file's end."""

    def __init__(self, shard_rows: int) -> None:
        self.shards: list[Shard] = []
        self._shard_rows = shard_rows
        self._file, self._position, self._next_row = -1, 0, 1
        self._begin()

    @property
    def num_rows(self) -> int:
        """Of all files so far."""
        return self._next_row - 1

    def begin_file(self, position: int) -> None:
        """The next file's rows begin at `position`; what was fed since the last one is no row's."""
        self._file += 1
        self._position = position
        self._begin()

    def feed(self, data: bytes) -> None:
        """Bytes of the row to come."""
        self._digest.update(data)
        self._num_bytes += len(data)

    def add_row(self, line: int, extent: int) -> None:
        """A row was read; `extent` is what it takes of the file, in the shard's units."""
        if self._num_rows == 0:
            self._first_line = line
        self._num_rows += 1
        self._extent += extent
        self._next_row += 1
        if self._num_rows == self._shard_rows or self._num_bytes >= MAX_SHARD_BYTES:
            self.end_shard()

    def end_shard(self) -> None:
        """Also a file's end; does nothing after another."""
        if self._num_rows == 0:
            return
        stop = self._position + self._extent
        self.shards.append(
            Shard(
                index=len(self.shards),
                file=self._file,
                first_row=self._next_row - self._num_rows,
                num_rows=self._num_rows,
                first_line=self._first_line,
                start=self._position,
                stop=stop,
                sha256=self._digest.hexdigest(),
            )
        )
        self._position = stop
        self._begin()

    def _begin(self) -> None:
        self._digest = hashlib.sha256()
        self._num_rows = 0
        self._num_bytes = 0
        self._extent = 0
        self._first_line = 0
