"""A client's own copies of prompts: one file for each thing asked for, whole or absent.

A file is the sha256 of all that follows, the version as a line of JSON, then its weights. What does
not match its digests is as good as absent. The folder may be deleted at any time.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

from encoders.errors import WeightsError
from encoders.files.durable_file import write_durably
from encoders.files.untrusted_file import open_untrusted
from orchestrator.domain.digest import canonical_json, digest_bytes, digest_json
from orchestrator.domain.errors import IntegrityError
from orchestrator.domain.prompt_version import PromptVersion
from orchestrator.domain.version_record import dump_version, read_version

WEIGHTS = "prompt_embeddings"
MAX_BYTES = 1 << 32
logger = logging.getLogger("tutti.cache")


@dataclass(frozen=True)
class CachedPrompt:
    """A version with its weights (safetensors bytes), and when the registry named it: seconds
    since 1970 by this machine's clock."""

    version: PromptVersion
    weights: bytes
    seen_at: float


class PromptCache:
    """Copies of the prompts of one registry, `origin`, in `folder`."""

    def __init__(self, folder: Path, origin: str) -> None:
        self._folder = folder
        self._origin = origin

    def get(self, ref: str) -> CachedPrompt | None:
        """The copy kept for `ref`; None if there is none that is whole."""
        path = self._path(ref)
        if not path.exists():
            return None
        try:
            with open_untrusted(path, MAX_BYTES) as (file, _):
                return _parse(file.read(), str(path))
        except (WeightsError, IntegrityError, OSError) as error:
            logger.warning(f"the cached copy of {ref} cannot be used: {error}")
            return None

    def put(self, ref: str, prompt: CachedPrompt) -> None:
        """Keep a copy; a folder that cannot be written costs a warning, nothing else."""
        seen = canonical_json(prompt.seen_at).encode()
        body = b"\n".join((seen, dump_version(prompt.version), prompt.weights))
        try:
            write_durably(self._path(ref), [digest_bytes(body).encode(), b"\n", body])
        except OSError as error:
            logger.warning(f"{ref} is not kept for later: {self._folder}: {error}")

    def drop(self, ref: str) -> None:
        """Forget what the registry does not know any more."""
        self._path(ref).unlink(missing_ok=True)

    def _path(self, ref: str) -> Path:
        return self._folder / digest_json([self._origin, ref])


def _parse(data: bytes, where: str) -> CachedPrompt:
    digest, _, body = data.partition(b"\n")
    if digest != digest_bytes(body).encode():
        raise IntegrityError(f"{where}: the bytes are not what their digest says")
    seen_at, _, rest = body.partition(b"\n")
    record, _, weights = rest.partition(b"\n")
    version = read_version(record, where)
    artifact = version.artifacts[WEIGHTS]
    if digest_bytes(weights) != artifact.digest:
        raise IntegrityError(f"{where}: the weights are not those of {version.ref}")
    return CachedPrompt(version, weights, float(seen_at))
