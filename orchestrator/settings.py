"""Settings: where things are. Read once, from `TUTTI_*` variables and one `tutti.toml`.

The environment wins over the file; the file is `tutti.toml` in the working folder, else in
TUTTI_HOME. What to train is a spec's business, not a setting.
"""

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import platformdirs
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from orchestrator.domain.errors import InvalidInput
from orchestrator.domain.gang import MAX_POSITIONS, Offload

FILE_NAME = "tutti.toml"
PREFIX = "TUTTI_"


def _number(value: object) -> object:
    """A variable's text as a number, if it is one; pydantic judges the rest."""
    return int(value) if isinstance(value, str) and value.isdigit() else value


def _absolute(folder: Path) -> Path:
    """Workers run in folders of their own."""
    return folder.expanduser().absolute()


class Settings(BaseModel):
    """All settings. Unset URLs mean the embedded parts under `home`."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    home: Path
    database_url: str
    mlflow_tracking_uri: str
    artifact_url: str
    #: A Ray cluster to join (`host:port`, `ray://...`, `auto`); None starts one here.
    ray_address: str | None = None
    #: Workers of the cluster, for all gangs together; of a gang at most; and how few of them a gang
    #: may go on with.
    num_workers: int = Field(2, ge=1, le=4096)
    gang_workers: int = Field(16, ge=1, le=4096)
    min_workers: int = Field(1, ge=1, le=4096)
    #: Threads of each worker; None: a worker's share of this machine's processors.
    worker_threads: int | None = Field(None, ge=1, le=1024)
    #: Positions of one step on a worker: what it takes of jobs at a time, and at how many of them
    #: a free worker is rather given a gang of its own.
    step_positions: int = Field(8_192, ge=16)
    grow_positions: int = Field(4_096, ge=16)
    #: Memory of each worker for what its jobs learn: encoders, and what their optimizers keep.
    task_memory_mb: int = Field(4096, ge=1)
    #: Seconds a gang without work stays up, and its turn while jobs that need another one wait.
    gang_idle_s: float = Field(60.0, ge=0)
    gang_turn_s: float = Field(300.0, ge=0)
    #: Seconds that one stage of a gang's start may take.
    start_timeout_s: float = Field(600.0, gt=0)
    #: DeepSpeed's stage where a spec says nothing; `auto` goes by the base's size.
    zero_stage: Annotated[Literal["auto", 0, 3], BeforeValidator(_number)] = "auto"
    #: Memory of a device that workers share, for `auto`: a machine's, or a GPU's. None: measured.
    device_memory_gb: float | None = Field(None, gt=0)
    #: A folder on every worker's machine for the parts of a base that are offloaded to NVMe.
    offload_folder: Annotated[Path, AfterValidator(_absolute)] | None = None
    #: Where the parts of a split base are kept: with the worker, or beside its GPU.
    offload: Offload = "none"
    #: Positions of one forward pass: what bounds the memory of a step.
    max_positions: int = Field(MAX_POSITIONS, ge=16)
    #: Memory of each worker for the states of texts that stand before a prompt, then disk.
    context_memory_mb: int = Field(2048, ge=0)
    context_disk_mb: int = Field(0, ge=0)
    #: Memory of each worker for copies of a base's weights in the order that its processor
    #: multiplies them in fastest: twice the weights is all of them.
    weight_copies_mb: int = Field(1200, ge=0)
    #: What those states are kept in: exact, or half as large.
    context_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    #: Seconds between two checkpoints of a task: what a killed worker loses at most.
    checkpoint_s: float = Field(30.0, ge=0)
    #: Seconds after which a holder that has not been heard of loses its job.
    lease_s: float = Field(60.0, gt=1)
    #: Seconds that `Tutti.load` goes by its own copy before it asks the registry again.
    cache_ttl_s: float = Field(60.0, ge=0)
    #: What `tutti mlflow sync` does about aliases that were moved by hand in MLflow.
    mlflow_drift: Literal["report", "adopt", "revert"] = "report"

    @field_validator("offload")
    @classmethod
    def _check_folder(cls, offload: Offload, info: ValidationInfo) -> Offload:
        if offload == "nvme" and info.data.get("offload_folder") is None:
            raise ValueError("offload to nvme needs offload_folder (TUTTI_OFFLOAD_FOLDER)")
        return offload

    @property
    def bases(self) -> Path:
        return self.home / "bases"

    @property
    def logs(self) -> Path:
        return self.home / "logs"

    @property
    def prompt_cache(self) -> Path:
        return self.home / "cache" / "prompts"

    @property
    def evaluations(self) -> Path:
        return self.home / "evaluations"

    @property
    def mlflow_artifacts(self) -> Path:
        return self.home / "mlartifacts"


def read_settings(environ: Mapping[str, str] | None = None, cwd: Path | None = None) -> Settings:
    """Read the settings, or raise InvalidInput naming the variable or the file and key."""
    environ = os.environ if environ is None else environ
    given = {
        name: environ[PREFIX + name.upper()]
        for name in Settings.model_fields
        if environ.get(PREFIX + name.upper())
    }
    from_file, file = _read_file(cwd or Path.cwd(), given.get("home"))
    values: dict[str, Any] = {**from_file, **given}
    home = values.get("home") or platformdirs.user_data_path("tutti")
    if not isinstance(home, str | Path):
        raise InvalidInput(f"{file}: home: a folder is given as text (found {home!r})")
    home = Path(home).expanduser().absolute()
    values["home"] = home
    values.setdefault("database_url", f"sqlite:///{home / 'tutti.db'}")
    values.setdefault("mlflow_tracking_uri", f"sqlite:///{home / 'mlflow.db'}")
    values.setdefault("artifact_url", str(home / "artifacts"))
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        raise InvalidInput(_explain(error, given, file)) from error


def _read_file(cwd: Path, home: str | None) -> tuple[dict[str, Any], Path | None]:
    folders = [cwd, Path(home).expanduser() if home else platformdirs.user_data_path("tutti")]
    for file in (folder / FILE_NAME for folder in folders):
        if file.is_file():
            try:
                return tomllib.loads(file.read_text(encoding="utf-8")), file
            except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
                raise InvalidInput(f"{file}: cannot be read as TOML: {error}") from error
    return {}, None


def _explain(error: ValidationError, given: Mapping[str, str], file: Path | None) -> str:
    lines = []
    for detail in error.errors(include_url=False):
        key = str(detail["loc"][0])
        where = PREFIX + key.upper() if key in given else f"{file}: {key}"
        if detail["type"] == "extra_forbidden":
            allowed = ", ".join(sorted(Settings.model_fields))
            lines.append(f"{where}: unknown setting; allowed are {allowed}")
        else:
            lines.append(f"{where}: {detail['msg']} (found {detail['input']!r})")
    return "\n".join(lines)
