"""Memory stays flat, whatever the length of a line, a file or a row group."""

import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from orchestrator.batch_data.shard_reader import read_shard
from tests.orchestrator.batch_data.tables import PROMPT, scanned

MEGABYTE = 1 << 20


def peak_bytes(work: Callable[[], None]) -> int:
    """The most Python memory that `work` takes at once beyond what there was."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def write_chunks(path: Path, chunks: Iterator[bytes]) -> Path:
    with path.open("wb") as file:
        for chunk in chunks:
            file.write(chunk)
    return path


def long_line(head: bytes, tail: bytes) -> Iterator[bytes]:
    yield head
    for _ in range(200):
        yield b"a" * MEGABYTE
    yield tail


@pytest.mark.parametrize(
    ("name", "head", "tail", "num_around"),
    [
        ("a.jsonl", b'{"word": "a1"}\n', b'\n{"word": "a2"}\n', 1),
        ("a.csv", b'word\na1\n"x\ny', b'"\na2\n', 6),
    ],
)
def test_a_line_of_200_megabytes_is_an_error_and_never_in_memory(
    tmp_path: Path, name: str, head: bytes, tail: bytes, num_around: int
) -> None:
    """`num_around`: the bytes of the row beside the 200 MB, its line end counted."""
    path = write_chunks(tmp_path / name, long_line(head, tail))
    errors: list[str | None] = []

    def work() -> None:
        found = scanned(path, 3)
        for shard in found.shards:
            errors.extend(row.error for row in read_shard(found, shard, PROMPT))

    assert peak_bytes(work) < 8 * MEGABYTE
    first, second, third = errors
    assert (first, third) == (None, None)
    assert (second or "").startswith(f"line {3 if name == 'a.csv' else 2}: ")
    assert f": {200 * MEGABYTE + num_around} bytes; at most " in (second or "")


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_a_file_of_many_rows_takes_no_more_than_its_shards(tmp_path: Path, name: str) -> None:
    row = b'{"word": "%0500d"}\n' if name == "a.jsonl" else b'"%0500d"\n'
    head = [] if name == "a.jsonl" else [b"word\n"]
    rows = (row % number for number in range(45_000))
    path = write_chunks(tmp_path / name, iter([*head, *rows]))

    def work() -> None:
        found = scanned(path, 1024)
        assert sum(1 for shard in found.shards[::8] for _ in read_shard(found, shard, PROMPT)) > 0

    assert path.stat().st_size > 20 * MEGABYTE
    assert peak_bytes(work) < 8 * MEGABYTE


def test_a_row_group_is_read_batch_by_batch(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    schema = pa.schema([("word", pa.string())])
    with pq.ParquetWriter(path, schema, compression="none", use_dictionary=False) as writer:
        words = pa.array([f"{number:02000d}" for number in range(30_000)])
        writer.write_table(pa.table([words], schema), row_group_size=30_000)
    del words
    pool = pa.default_memory_pool()
    before = pool.bytes_allocated()
    most = 0

    def work() -> None:
        nonlocal most
        found = scanned(path, 1024)
        for row in read_shard(found, found.shards[-2], PROMPT):
            most = max(most, pool.bytes_allocated() - before)
            assert row.error is None

    assert path.stat().st_size > 50 * MEGABYTE
    assert peak_bytes(work) < 8 * MEGABYTE
    assert 0 < most < 16 * MEGABYTE
