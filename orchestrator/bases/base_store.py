"""The base models on disk: `root/FINGERPRINT/` is a plain transformers folder and its manifest.

A folder appears under its fingerprint complete and checked, or not at all, and never changes.
Adding takes the store's lock, so whatever lies half-added then is a dead process's and is swept.
"""

import fcntl
import json
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

from encoders.files.durable_file import fsync_folder, make_folder
from orchestrator.bases.base_source import BaseSource, digest_files
from orchestrator.bases.manifest import ADD_AGAIN, MANIFEST, Manifest
from orchestrator.bases.model_check import check_model
from orchestrator.bases.model_folder import CONFIG, counted_files
from orchestrator.domain.base_model import BaseModelRecord
from orchestrator.domain.base_model import fingerprint as compute_fingerprint
from orchestrator.domain.digest import short
from orchestrator.domain.errors import IntegrityError, InvalidInput, TuttiError
from orchestrator.domain.task_spec import check_name

STAGE_PREFIX = ".adding-"


class BaseStore:
    """Adds, finds and verifies base models. Never touches the network."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()

    def add(self, name: str, source: Path, gguf: str | None = None) -> BaseModelRecord:
        """Check, copy (or convert) and store a base model; a no-op if it is stored unharmed.

        Raises InvalidModelFolder before anything is visible in the store.
        """
        try:
            check_name(name)
        except ValueError as error:
            raise InvalidInput(str(error)) from error
        with self._explained(name):
            base_source = BaseSource.open(source, gguf)
            with self._locked():
                self._sweep()
                manifest = self._find(base_source.digest) or self._build(base_source)
                self._sweep()
        return manifest.to_record(name, base_source.gguf or source)

    def source_digest(self, source: Path, gguf: str | None = None) -> str:
        """The digest of the bytes a base would be made from; nothing is loaded or converted."""
        return BaseSource.open(source, gguf).digest

    def path(self, fingerprint: str) -> Path:
        """The model's folder; raises IntegrityError if it is not in the store."""
        if not re.fullmatch(r"[0-9a-f]{64}", fingerprint):
            raise IntegrityError(
                f"{fingerprint[:80]!r} is not a fingerprint; expected 64 lower-case hex digits"
            )
        folder = self.root / fingerprint
        if not (folder / MANIFEST).is_file():
            raise IntegrityError(
                f"the base model with fingerprint {fingerprint} is not in {self.root}", ADD_AGAIN
            )
        return folder

    def verify(self, fingerprint: str) -> None:
        """Read every byte again; raise IntegrityError, with both fingerprints, if any differs."""
        folder = self.path(fingerprint)
        listed = Manifest.read(folder).files
        absent = sorted(name for name in listed if not (folder / name).is_file())
        if absent:
            raise IntegrityError(
                f"{folder}: {', '.join(absent)} of the base model {short(fingerprint)} is missing",
                ADD_AGAIN,
            )
        actual = digest_files(folder, sorted({*listed, *counted_files(folder)}))
        altered = [name for name in actual if actual[name] != listed.get(name)]
        computed = _fingerprint(folder, actual)
        if altered or computed != fingerprint:
            raise IntegrityError(
                f"{folder}: the base model was altered ({', '.join(altered) or MANIFEST}): "
                f"expected fingerprint {fingerprint}, actual {computed}",
                ADD_AGAIN,
            )

    def _find(self, source_digest: str) -> Manifest | None:
        """The stored model that was made from these bytes, if it is unharmed."""
        for file in sorted(self.root.glob(f"[0-9a-f]*/{MANIFEST}")):
            try:
                manifest = Manifest.read(file.parent)
                if manifest.source_digest == source_digest:
                    self.verify(file.parent.name)
                    return manifest
            except IntegrityError:
                continue
        return None

    def _build(self, source: BaseSource) -> Manifest:
        stage = self.root / f"{STAGE_PREFIX}{uuid.uuid4().hex}"
        stage.mkdir()
        try:
            folder, files = source.fill(stage)
            facts = check_model(folder)
            fingerprint = compute_fingerprint(files, folder.config)
            manifest = Manifest(fingerprint, source.digest, files, **asdict(facts))
            manifest.write(stage)
            return self._commit(stage, manifest)
        finally:
            shutil.rmtree(stage, ignore_errors=True)

    def _commit(self, stage: Path, manifest: Manifest) -> Manifest:
        """Rename a complete stage into place, unless another source gave the same model before."""
        folder = self.root / manifest.fingerprint
        try:
            self.verify(manifest.fingerprint)
            return replace(Manifest.read(folder), source_digest=manifest.source_digest)
        except IntegrityError:
            if folder.exists():  # harmed: it makes way
                folder.rename(self.root / f"{STAGE_PREFIX}{uuid.uuid4().hex}")
        stage.rename(folder)
        fsync_folder(self.root)
        return manifest

    def _sweep(self) -> None:
        for stage in self.root.glob(f"{STAGE_PREFIX}*"):
            shutil.rmtree(stage, ignore_errors=True)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        make_folder(self.root)
        with (self.root / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    @contextmanager
    def _explained(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise TuttiError(
                f"cannot store the base model {name} in {self.root}: {error}",
                "Check the disk's free space and permissions; nothing was stored.",
            ) from error


def _fingerprint(folder: Path, files: dict[str, str]) -> str:
    """The fingerprint of a folder as it is now."""
    try:
        config = json.loads((folder / CONFIG).read_bytes())
        return compute_fingerprint(files, config)
    except (ValueError, AttributeError):
        return f"none: {CONFIG} is no JSON object"
