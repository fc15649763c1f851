"""The manifest of a stored base model: each file's sha256, and facts. Written last."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from encoders.files.durable_file import write_durably
from orchestrator.domain.base_model import BaseModelRecord
from orchestrator.domain.errors import IntegrityError

MANIFEST = "manifest.json"
ADD_AGAIN = "Add the base model again: tutti base add NAME FOLDER."


@dataclass(frozen=True)
class Manifest:
    """`files` maps names to sha256; `source_digest` says what the model was made from."""

    fingerprint: str
    source_digest: str
    files: Mapping[str, str]
    architecture: str
    num_parameters: int
    hidden_size: int
    max_length: int

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """Read a folder's manifest, or raise IntegrityError."""
        try:
            return cls(**json.loads((folder / MANIFEST).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise IntegrityError(
                f"{folder / MANIFEST}: the manifest cannot be read: {error}",
                ADD_AGAIN,
            ) from error

    def write(self, folder: Path) -> None:
        text = json.dumps(asdict(self), indent=2, sort_keys=True)
        write_durably(folder / MANIFEST, [text.encode()])

    def to_record(self, name: str, source: Path) -> BaseModelRecord:
        return BaseModelRecord(
            name=name, source=str(source), created_at=datetime.now(UTC), **asdict(self)
        )
