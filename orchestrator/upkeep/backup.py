"""The registry saved in a folder, and brought back: a file a table, and the artifacts it names.

A backup is of one moment, however long it takes, and restores into either kind of database. What is
restored is verified first, and goes only where nothing is.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from encoders.errors import WeightsError
from encoders.files.durable_file import make_folder, write_durably
from encoders.files.untrusted_file import open_untrusted
from orchestrator.artifacts.artifact_store import ArtifactStore
from orchestrator.artifacts.store_files import StoreFiles
from orchestrator.domain.errors import IntegrityError, InvalidInput, SchemaMismatch, TuttiError
from orchestrator.registry.database import Database
from orchestrator.registry.dump import load_dump, open_dump, table_names
from orchestrator.registry.references import Reference, References
from orchestrator.upkeep.backup_manifest import BackupManifest, TableFile

ARTIFACTS = "artifacts"
MAX_TABLE_BYTES = 1 << 44
_DIGEST = re.compile(rb"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")


@dataclass(frozen=True)
class Moment:
    """What a backup says of itself: which registry it is of, of when, its schema and program."""

    registry: str
    created_at: datetime
    revision: str
    code_version: str


@dataclass(frozen=True)
class Saved:
    """What a backup came to. `lost`: artifacts that the registry names and could not be saved."""

    num_rows: int
    num_artifacts: int
    lost: tuple[Reference, ...] = ()


def save(
    database: Database, store: ArtifactStore, folder: Path, moment: Moment, with_artifacts: bool
) -> Saved:
    """Save everything in `folder`, which must be new or empty. Killed half-way it is no backup.

    Raises InvalidInput, or TuttiError where the folder cannot be written.
    """
    try:
        _require_empty(folder)
        with open_dump(database) as dump:
            tables = {name: _write_table(folder, name, dump.lines(name)) for name in table_names()}
            counters = dump.counters()
        saved = _save_artifacts(database, store, folder, tables) if with_artifacts else (0, ())
        manifest = BackupManifest(
            registry=moment.registry,
            code_version=moment.code_version,
            created_at=moment.created_at.isoformat(),
            revision=moment.revision,
            tables=tables,
            counters=counters,
            has_artifacts=with_artifacts,
        )
        manifest.write(folder)
    except OSError as error:
        raise TuttiError(
            f"{folder}: the backup cannot be written: {error.strerror or error}",
            "Check the disk's free space and permissions, and give a new folder.",
        ) from error
    return Saved(sum(table.num_rows for table in tables.values()), *saved)


def restore(database: Database, store: ArtifactStore, folder: Path, revision: str) -> Saved:
    """Bring a backup back into an empty database whose schema is `revision`; its artifacts too, if
    it has them. Everything is verified before a row is written, and all rows come or none.

    Raises InvalidInput, IntegrityError or SchemaMismatch.
    """
    manifest = BackupManifest.read(folder)
    _check_schema(manifest, folder, revision)
    for name in table_names():
        _verify_table(folder, name, manifest.tables[name])
    num_artifacts = 0
    if manifest.has_artifacts:
        copies = ArtifactStore(str(folder / ARTIFACTS))
        for file in StoreFiles(copies.url).list():
            if file.digest is not None:
                store.put_bytes(copies.get_bytes(file.digest))
                num_artifacts += 1
    num_rows = load_dump(database, lambda name: _lines(folder, name), manifest.counters)
    return Saved(num_rows, num_artifacts)


def _require_empty(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InvalidInput(
            f"{folder}: there is something already", "Give a folder that is new or empty."
        )
    make_folder(folder)
    folder.chmod(0o700)  # who may read a registry's rows is not who may read this folder's parent


def _write_table(folder: Path, name: str, lines: Iterable[str]) -> TableFile:
    sha256, sizes = hashlib.sha256(), [0, 0]

    def counted() -> Iterator[bytes]:
        for line in lines:
            data = line.encode()
            sha256.update(data)
            sizes[0] += 1
            sizes[1] += len(data)
            yield data

    write_durably(folder / f"{name}.jsonl", counted())
    return TableFile(num_rows=sizes[0], num_bytes=sizes[1], sha256=sha256.hexdigest())


def _save_artifacts(
    database: Database, store: ArtifactStore, folder: Path, tables: Iterable[str]
) -> tuple[int, tuple[Reference, ...]]:
    """Copy every artifact that a saved row names, verified."""
    there = {file.digest for file in StoreFiles(store.url).list()}
    copies = ArtifactStore(str(folder / ARTIFACTS))
    named = {
        digest.decode()
        for name in tables
        for line in _raw_lines(folder, name)
        for digest in _DIGEST.findall(line)
    }
    copied = set()
    for digest in sorted(named & there):
        try:
            copies.put_bytes(store.get_bytes(digest))
            copied.add(digest)
        except IntegrityError:  # altered or gone: it is reported as lost if it still matters
            continue
    needed = References(database).list()
    return len(copied), tuple(each for each in needed if each.digest not in copied)


def _check_schema(manifest: BackupManifest, folder: Path, revision: str) -> None:
    if manifest.revision != revision or set(manifest.tables) != set(table_names()):
        raise SchemaMismatch(
            f"{folder}: the backup is of the schema {manifest.revision}, this program's is "
            f"{revision}",
            f"Restore it with the program that made it (version {manifest.code_version}), then run "
            "`tutti db upgrade` with this one.",
        )


def _verify_table(folder: Path, name: str, table: TableFile) -> None:
    sha256, num_rows = hashlib.sha256(), 0
    for line in _raw_lines(folder, name):
        sha256.update(line)
        num_rows += 1
    if (sha256.hexdigest(), num_rows) != (table.sha256, table.num_rows):
        raise IntegrityError(
            f"{folder / name}.jsonl: the file was altered or cut short: expected {table.num_rows} "
            f"rows of {table.sha256}, actual {num_rows} of {sha256.hexdigest()}",
            "Restore another backup. Nothing was restored.",
        )


def _lines(folder: Path, name: str) -> Iterator[str]:
    for line in _raw_lines(folder, name):
        yield line.decode()


def _raw_lines(folder: Path, name: str) -> Iterator[bytes]:
    try:
        with open_untrusted(folder / f"{name}.jsonl", MAX_TABLE_BYTES) as (file, _):
            yield from file
    except WeightsError as error:
        raise IntegrityError(str(error), "Restore another backup. Nothing was restored.") from error
