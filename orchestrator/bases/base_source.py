"""What a base model is made from: a transformers folder, or a GGUF file to convert."""

import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from encoders.files.durable_file import fsync_folder
from orchestrator.bases.gguf import convert_gguf, find_gguf
from orchestrator.bases.model_folder import ModelFolder, read_model_folder
from orchestrator.domain.digest import digest_file, digest_json
from orchestrator.domain.errors import InvalidModelFolder


@dataclass(frozen=True)
class BaseSource:
    """A checked source and the digest of its bytes. `gguf` is the file to convert, if any."""

    path: Path
    gguf: Path | None
    digest: str

    @classmethod
    def open(cls, source: Path, gguf: str | None) -> "BaseSource":
        """Check a source without loading it; raise InvalidModelFolder."""
        file = find_gguf(source, gguf)
        if file is not None:
            return cls(source, file, digest_json({"gguf": digest_file(file)}))
        folder = read_model_folder(source)
        return cls(source, None, _digest_all(digest_files(source, folder.files)))

    def fill(self, stage: Path) -> tuple[ModelFolder, Mapping[str, str]]:
        """Copy or convert into `stage`, on the disk; return the folder and its files' digests."""
        if self.gguf is not None:
            convert_gguf(self.gguf, stage)
        else:
            _copy(self.path, stage)
        folder = read_model_folder(stage, place=str(self.gguf or self.path))
        files = digest_files(stage, folder.files)
        if self.gguf is None and _digest_all(files) != self.digest:
            raise InvalidModelFolder(f"{self.path}: its files changed while they were copied")
        for name in files:
            _flush(stage / name)
        return folder, files


def digest_files(folder: Path, names: Iterable[str]) -> dict[str, str]:
    return {name: digest_file(folder / name) for name in names}


def _digest_all(files: Mapping[str, str]) -> str:
    return digest_json({"files": dict(files)})


def _copy(source: Path, to: Path) -> None:
    for name in read_model_folder(source).files:
        (to / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(source / name, to / name)


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
    fsync_folder(path.parent)
