"""Versions as one file, and back: exported with all they need but base and data, imported whole or
not at all. Equal content is the same version wherever it comes from."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from orchestrator.artifacts.artifact_store import ArtifactStore
from orchestrator.domain.digest import digest_bytes, short
from orchestrator.domain.errors import IntegrityError, TuttiError
from orchestrator.domain.prompt_version import PromptRef, PromptVersion
from orchestrator.registry.prompt_registry import PromptRegistry
from orchestrator.upkeep.archive_content import check_content
from orchestrator.upkeep.archive_manifest import Manifest, dump_manifest, read_manifest
from orchestrator.upkeep.archive_zip import ArchiveFile, open_archive, refused, write_archive

Imported = list[tuple[PromptVersion, bool]]


def export_versions(
    registry: PromptRegistry,
    store: ArtifactStore,
    refs: Sequence[PromptRef],
    path: Path,
    place: str,
) -> list[PromptVersion]:
    """Write the versions of `refs` as the archive `path`, replacing it; `place` is this registry's.

    Each artifact is verified. Raises UnknownName, IntegrityError, or TuttiError for the file.
    """
    found = {version.ref: version for version in map(registry.resolve, refs)}
    versions = sorted(found.values(), key=lambda each: (each.task, each.number))
    digests = {each.digest for version in versions for each in version.artifacts.values()}
    artifacts = ((digest, store.get_bytes(digest)) for digest in sorted(digests))
    try:
        write_archive(path, dump_manifest(versions, place), artifacts)
    except OSError as error:
        raise TuttiError(
            f"{path}: cannot be written: {error.strerror or error}",
            "Give a file in a folder that exists and that you may write.",
        ) from error
    return versions


def import_versions(registry: PromptRegistry, store: ArtifactStore, path: Path) -> Imported:
    """Register every version of an archive; those whose content is there already are False.

    All is checked before anything is stored, and all are registered in one transaction. Raises
    InvalidInput for what is no archive, IntegrityError for bytes that are not of their digest.
    """
    with open_archive(path) as archive:
        manifest = _checked(archive)
        for digest, data in _verified(archive, manifest):
            assert store.put_bytes(data).digest == digest
    return registry.register_all([version.trained() for version in manifest.versions])


def _checked(archive: ArchiveFile) -> Manifest:
    """The manifest, once everything in the archive is what it says."""
    try:
        manifest = read_manifest(archive.manifest())
    except ValueError as error:
        raise refused(archive.place, f"its manifest: {error}") from error
    if dict(archive.sizes) != dict(manifest.artifacts()):
        raise refused(archive.place, "its members are not those that its manifest names")
    roles: dict[str, list[tuple[str, int]]] = {}
    for index, version in enumerate(manifest.versions):
        for role, artifact in version.artifacts.items():
            roles.setdefault(artifact.digest, []).append((role, index))
    for digest, data in _verified(archive, manifest):
        for role, index in roles[digest]:
            version = manifest.versions[index]
            try:
                check_content(role, data, version.config)
            except ValueError as error:
                where = f"the {role} of {version.task} {short(version.digest)}"
                raise refused(archive.place, f"{where}: {error}") from error
    return manifest


def _verified(archive: ArchiveFile, manifest: Manifest) -> Iterator[tuple[str, bytes]]:
    for digest in manifest.artifacts():
        data = archive.artifact(digest)
        if (actual := digest_bytes(data)) != digest:
            raise IntegrityError(
                f"{archive.place}: the artifact {digest} is altered: its bytes have {actual}",
                "Export it again. Nothing was imported.",
            )
        yield digest, data
