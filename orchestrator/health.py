"""Checks an installation part by part; each check says ok, or what to do."""

import importlib.metadata
import os
import platform
import shutil
from collections.abc import Callable
from dataclasses import dataclass

from orchestrator.bootstrap import Parts
from orchestrator.domain.errors import TuttiError
from orchestrator.settings import Settings, read_settings

MIN_FREE_GIB = 5
PACKAGES = ("torch", "transformers", "ray", "deepspeed", "mlflow", "sqlalchemy", "pydantic")


@dataclass(frozen=True)
class Check:
    """One check's result; `remedy` is empty when it is ok."""

    name: str
    is_ok: bool
    found: str
    remedy: str = ""


def check_all() -> list[Check]:
    """Run every check; none of them raises."""
    checks = [_guarded("versions", _versions), _guarded("devices", _devices)]
    try:
        settings = read_settings()
    except TuttiError as error:
        return [*checks, Check("settings", False, error.message, "Mend the setting it names.")]
    parts = Parts(settings)
    checks += [
        _guarded("data directory", lambda: _home(settings)),
        _guarded("disk", lambda: _disk(settings)),
        _guarded("database", lambda: _database(parts)),
        _guarded("artifacts", lambda: _artifacts(parts)),
        _guarded("mlflow", lambda: _mlflow(parts)),
        _guarded("ray", lambda: _ray(settings)),
        _guarded("base models", lambda: _bases(parts)),
    ]
    parts.close()
    return checks


def _guarded(name: str, check: Callable[[], Check]) -> Check:
    try:
        return check()
    except TuttiError as error:
        return Check(name, False, error.message, error.remedy or "See the message.")
    except Exception as error:  # a broken installation can break anywhere: that is the finding
        return Check(name, False, f"{type(error).__name__}: {error}", "Run `make setup` again.")


def _versions() -> Check:
    found = [f"python {platform.python_version()}"]
    missing = []
    for package in PACKAGES:
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(package)
    remedy = f"Install {', '.join(missing)}: run `make setup`." if missing else ""
    return Check("versions", not missing, ", ".join(found), remedy)


def _devices() -> Check:
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    found = f"{os.cpu_count()} CPU cores, {', '.join(gpus) or 'no GPU'}"
    return Check("devices", True, found)


def _home(settings: Settings) -> Check:
    settings.home.mkdir(parents=True, exist_ok=True)
    probe = settings.home / f".doctor-{os.getpid()}"
    try:
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        return Check(
            "data directory",
            False,
            f"{settings.home}: {error.strerror}",
            "Make it writable, or set TUTTI_HOME to a folder that is.",
        )
    return Check("data directory", True, str(settings.home))


def _disk(settings: Settings) -> Check:
    free = shutil.disk_usage(settings.home).free / 2**30
    remedy = "" if free >= MIN_FREE_GIB else f"Free some space: {MIN_FREE_GIB} GiB are wanted."
    return Check("disk", not remedy, f"{free:.1f} GiB free", remedy)


def _database(parts: Parts) -> Check:
    from orchestrator.registry import migrate

    address = parts.database.address  # opening it is the check
    revision = migrate.current(parts.settings.database_url)
    return Check("database", True, f"{address}, schema {revision}")


def _artifacts(parts: Parts) -> Check:
    artifact = parts.artifacts.put_bytes(b"tutti doctor\n")
    parts.artifacts.get_bytes(artifact.digest)
    found = f"{parts.artifacts.url} (`tutti fsck` checks what is in it)"
    return Check("artifacts", True, found)


def _mlflow(parts: Parts) -> Check:
    error = parts.mirror.ping()
    waiting = parts.outbox.num_pending()
    found = f"{parts.settings.mlflow_tracking_uri}, {waiting} messages waiting for it"
    if error is None:
        return Check("mlflow", True, found)
    remedy = "Start it, or set TUTTI_MLFLOW_TRACKING_URI. Training and promotion work without it."
    return Check("mlflow", False, f"{found}: {error}", remedy)


def _ray(settings: Settings) -> Check:
    version = importlib.metadata.version("ray")
    if settings.ray_address is None:
        return Check("ray", True, f"{version}, started here for each run")
    import socket

    host, _, port = settings.ray_address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return Check("ray", True, f"{version}, {settings.ray_address}")
    try:
        socket.create_connection((host, int(port)), timeout=3).close()
    except OSError as error:
        return Check(
            "ray",
            False,
            f"{settings.ray_address}: {error}",
            "Start the cluster, or unset TUTTI_RAY_ADDRESS to run here.",
        )
    return Check("ray", True, f"{version}, {settings.ray_address} answers")


def _bases(parts: Parts) -> Check:
    records = parts.bases.list()
    for record in records:
        parts.base_store.verify(record.fingerprint)
    names = ", ".join(record.name for record in records)
    return Check("base models", True, names or "none yet: `tutti base add NAME PATH`")
