"""Checks the artifacts that the database names: there, whole, and of their digest; and what else
lies in the store."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from orchestrator.artifacts.artifact_store import ArtifactStore
from orchestrator.artifacts.local_file import DOOMED_SUFFIX
from orchestrator.artifacts.store_files import StoredFile, StoreFiles
from orchestrator.domain.digest import short
from orchestrator.domain.errors import IntegrityError, StoreUnavailable
from orchestrator.registry.references import Reference, References
from orchestrator.upkeep.finding import Finding

_NUM_SHOWN = 3
Named = Mapping[str, Sequence[Reference]]


class ArtifactCheck:
    """One look at a store. `copies`: another store, to put back from what is lost here."""

    def __init__(
        self,
        store: ArtifactStore,
        files: StoreFiles,
        references: References,
        copies: ArtifactStore | None = None,
    ) -> None:
        self._store, self._files, self._references = store, files, references
        self._copies = copies

    def findings(self, quick: bool) -> Iterator[Finding]:
        """`quick` goes by presence and size; else every named byte is read."""
        named = self._named()  # before the listing: what it names was stored before
        listed = list(self._files.list())
        yield from _litter(listed, self._files)
        there = {file.digest: file for file in listed if file.digest}
        found = [
            (digest, finding)
            for digest, by in named.items()
            if (finding := self._judge(digest, by, there.get(digest), quick)) is not None
        ]
        still = self._named() if found else {}  # a checkpoint may have been superseded meanwhile
        yield from (finding for digest, finding in found if digest in still)

    def _named(self) -> Named:
        named: defaultdict[str, list[Reference]] = defaultdict(list)
        for reference in self._references.list():
            named[reference.digest].append(reference)
        return named

    def _judge(
        self, digest: str, by: Sequence[Reference], file: StoredFile | None, quick: bool
    ) -> Finding | None:
        where = f"{short(digest)} of {_shown(by)}"
        sizes = {each.num_bytes for each in by if each.num_bytes is not None}
        if file is None:
            what = f"the artifact {digest} is not in {self._store.url}"
            return Finding("artifact-missing", where, what, repair=lambda: self._put_back(digest))
        if sizes - {file.num_bytes}:
            what = f"{file.name}: {file.num_bytes} bytes, expected {min(sizes)}"
        else:
            try:
                if not quick:
                    self._store.verify(digest)
                return None
            except IntegrityError as error:
                what = error.message
            except StoreUnavailable as error:
                return Finding("artifact-unreadable", where, error.message)
        return Finding("artifact-altered", where, what, repair=lambda: self._heal(digest, file))

    def _put_back(self, digest: str) -> str | None:
        if self._copies is None or not self._copies.exists(digest):
            return None
        self._store.put_bytes(self._copies.get_bytes(digest))
        return f"put back from {self._copies.url}"

    def _heal(self, digest: str, file: StoredFile) -> str | None:
        return self._put_back(digest) or f"{SET_ASIDE} {self._files.set_aside(file)}"


#: What is set aside is out of the way, but not mended.
SET_ASIDE = "set aside as"


def _litter(listed: Sequence[StoredFile], files: StoreFiles) -> Iterator[Finding]:
    for file in listed:
        if file.is_leftover:
            is_half_removed = file.name.endswith(DOOMED_SUFFIX)
            what = f"{file.num_bytes} bytes of a {'removal' if is_half_removed else 'write'}"
            yield Finding(
                "leftover",
                file.name,
                f"{what} that is under way, or was killed",
                repair=(lambda: _restore(files)) if is_half_removed else None,
            )
        elif file.digest is None:
            yield Finding("stray-file", file.name, f"{file.num_bytes} bytes that are no artifact")


def _restore(files: StoreFiles) -> str:
    files.restore_doomed()
    return "given back"


def _shown(by: Sequence[Reference]) -> str:
    names = [f"{each.by} ({each.role})" for each in by[:_NUM_SHOWN]]
    more = f" and {len(by) - _NUM_SHOWN} others" if len(by) > _NUM_SHOWN else ""
    return ", ".join(names) + more
