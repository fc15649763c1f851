"""What stands in a backup: its schema, and each table's rows, size and digest. Written last, so a
folder without it is no backup."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from encoders.errors import WeightsError
from encoders.files.durable_file import write_durably
from encoders.files.untrusted_file import read_json
from orchestrator.domain.errors import InvalidInput

MANIFEST = "manifest.json"
MAX_BYTES = 1 << 20
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class TableFile(BaseModel):
    """The rows of one table, in `TABLE.jsonl`."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    num_rows: int = Field(ge=0)
    num_bytes: int = Field(ge=0)
    sha256: Digest


class BackupManifest(BaseModel):
    """`registry` and `created_at` say of what and of when; `revision` is the schema's."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    format: Literal["tutti-backup"] = "tutti-backup"
    format_version: Literal[1] = 1
    registry: str
    code_version: str
    created_at: str
    revision: str
    tables: Mapping[str, TableFile]
    counters: Mapping[str, int]
    has_artifacts: bool

    def write(self, folder: Path) -> None:
        write_durably(folder / MANIFEST, [self.model_dump_json(indent=2).encode()])

    @classmethod
    def read(cls, folder: Path) -> "BackupManifest":
        """Raises InvalidInput for a folder that is no whole backup."""
        remedy = "Give a folder that `tutti db backup` wrote to its end."
        try:
            return cls.model_validate(read_json(folder / MANIFEST, MAX_BYTES))
        except WeightsError as error:
            raise InvalidInput(f"not a backup: {error}", remedy) from error
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(map(str, first["loc"]))
            raise InvalidInput(
                f"{folder / MANIFEST}: not a backup: {place}: {first['msg']}", remedy
            ) from error
