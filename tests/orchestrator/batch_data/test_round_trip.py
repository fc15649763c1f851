"""Whatever a table holds and however it is cut, each row comes back once, in order."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.batch_data.shard_reader import read_shard
from orchestrator.domain.digest import digest_file
from orchestrator.domain.errors import InvalidData
from tests.orchestrator.batch_data.tables import (
    PROMPT,
    Table,
    rows_of,
    scanned,
    write_csv,
    write_jsonl,
    write_parquet,
)

texts = st.text(
    st.characters(codec="utf-8", exclude_characters="\0"), max_size=8
) | st.sampled_from(
    [
        '"',
        '""',
        ',"',
        "a,b",
        "\n",
        "\r\n",
        "a\rb",
        "\t",
        '"\n"',
        "",
        " ",
        "\ufeff",
        "é😀",
        "[",
        "{}",
    ]
)
names = st.text("abcXYZ _é", min_size=1, max_size=4).filter(
    lambda name: name.strip() and name not in ("task", "version", "id", "fields")
)
tables = st.lists(names, min_size=1, max_size=4, unique=True).flatmap(
    lambda columns: st.lists(
        st.fixed_dictionaries({name: st.none() | texts for name in columns}), min_size=1, max_size=9
    )
)
WRITERS = {
    "a.jsonl": write_jsonl,
    "a.csv": write_csv,
    "unix.csv": lambda path, table: write_csv(path, table, "\n"),
    "a.tsv": lambda path, table: write_csv(path, table, delimiter="\t"),
    "a.parquet": write_parquet,
}
relaxed = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.mark.parametrize("name", WRITERS)
@given(table=tables, shard_rows=st.integers(1, 10))
@relaxed
def test_rows_come_back_once_in_order(
    tmp_path: Path, name: str, table: Table, shard_rows: int
) -> None:
    path = WRITERS[name](tmp_path / name, table)
    rows = rows_of(path, shard_rows)
    assert [row.error for row in rows] == [None] * len(table)
    present = [{key: value for key, value in row.items() if value is not None} for row in table]
    assert [dict(row.fields) for row in rows] == present
    assert [row.row for row in rows] == list(range(1, len(table) + 1))


@pytest.mark.parametrize("name", WRITERS)
@given(table=tables, shard_rows=st.integers(1, 10))
@relaxed
def test_shards_cover_the_file(tmp_path: Path, name: str, table: Table, shard_rows: int) -> None:
    path = WRITERS[name](tmp_path / name, table)
    found = scanned(path, shard_rows)
    (file,) = found.files
    assert (file.sha256, file.num_bytes) == (digest_file(path), path.stat().st_size)
    assert found.num_rows == file.num_rows == len(table)
    assert [shard.index for shard in found.shards] == list(range(-(-len(table) // shard_rows)))
    assert sum(shard.num_rows for shard in found.shards) == len(table)
    assert max(shard.num_rows for shard in found.shards) <= shard_rows
    for before, after in zip(found.shards, found.shards[1:], strict=False):
        assert after.first_row == before.first_row + before.num_rows
        assert after.start == before.stop
    end = len(table) if name.endswith("parquet") else file.num_bytes
    assert found.shards[-1].stop == end


@given(
    st.lists(
        st.sampled_from(
            [b'"', b",", b"\n", b"\r", b"a", b"{", b"}", b"\xff", b"\0", b"\xef\xbb\xbf"]
        )
        | st.binary(max_size=4),
        max_size=40,
    ).map(b"".join),
    st.integers(1, 4),
    st.sampled_from(["a.jsonl", "a.csv", "a.tsv", "a.parquet"]),
)
@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_bytes_are_rows_or_refused(
    tmp_path: Path, data: bytes, shard_rows: int, name: str
) -> None:
    path = tmp_path / name
    path.write_bytes(data if not name.endswith(".csv") else b"a,b\n" + data)
    try:
        rows = rows_of(path, shard_rows)
    except InvalidData as error:
        assert error.message.startswith(str(path))  # noqa: PT017
        return
    assert [row.row for row in rows] == list(range(1, len(rows) + 1))
    for row in rows:
        json.dumps([row.error, dict(row.fields)], ensure_ascii=False).encode()


@given(data=st.data(), table=tables)
@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_damaged_parquet_file_is_rows_or_refused(
    tmp_path: Path, data: st.DataObject, table: Table
) -> None:
    path = write_parquet(tmp_path / "a.parquet", table)
    whole = bytearray(path.read_bytes())
    for _ in range(3):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(whole[: data.draw(st.integers(len(whole) - 20, len(whole)))])
    try:
        rows_of(path)
    except InvalidData as error:
        assert error.message.startswith(str(path))  # noqa: PT017


@pytest.mark.parametrize("name", WRITERS)
@given(data=st.data(), table=tables)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_a_changed_byte_is_seen_or_changes_nothing(
    tmp_path: Path, name: str, data: st.DataObject, table: Table
) -> None:
    path = WRITERS[name](tmp_path / name, table)
    found = scanned(path)
    before = [list(read_shard(found, shard, PROMPT)) for shard in found.shards]
    whole = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(whole) - 1))
    whole[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(whole)
    for shard, rows in zip(found.shards, before, strict=True):
        try:
            assert list(read_shard(found, shard, PROMPT)) == rows
        except InvalidData as error:
            assert str(path) in error.message  # noqa: PT017
        else:
            assert name.endswith("parquet") or not shard.start <= place < shard.stop
