"""Loads prompts for programs that serve them: from the registry, from a copy that is kept for
`ttl_s` seconds, or, while registry or store are away, from an older copy, with a warning.

Copies are kept in memory, for this process, and in files, for all; a file is verified whenever it
is read. Safe to share between threads and, by its folder, between processes.
"""

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from cachetools import LRUCache

from orchestrator.bootstrap import Parts
from orchestrator.domain.errors import (
    IntegrityError,
    InvalidInput,
    SchemaMismatch,
    StoreUnavailable,
    TuttiError,
    UnknownName,
)
from orchestrator.domain.prompt_version import PromptRef, PromptVersion
from orchestrator.inference.loaded_prompt import LoadedPrompt
from orchestrator.prompt_cache import WEIGHTS, CachedPrompt, PromptCache
from orchestrator.registry import migrate
from orchestrator.registry.errors import DatabaseUnavailable
from orchestrator.tracking.mlflow_client import without_password
from orchestrator.tracking.model_download import download_prompt

RETRY_S = 5.0  # until what was away is asked again
WAIT_S = 1.0  # for another thread that asks, where there is an older copy
MAX_BYTES_IN_MEMORY = 1 << 26  # of virtual tokens; a prompt has some 10 KB to 1 MB
logger = logging.getLogger("tutti.cache")


def load_from_mlflow(model_uri: str, tracking_uri: str | None = None) -> LoadedPrompt:
    """The prompt of `models:/TASK@ALIAS` or `models:/TASK/MODEL_VERSION`, as `Tutti.load` gives it,
    verified against the digests in MLflow, without pickle and without a registry of Tutti's.

    `tracking_uri`: by default MLFLOW_TRACKING_URI. Raises InvalidInput, UnknownName,
    IntegrityError, and TuttiError for an MLflow that does not answer.
    """
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        raise InvalidInput(
            "it is not said which MLflow to ask", "Set MLFLOW_TRACKING_URI, or give tracking_uri."
        )
    found = download_prompt(model_uri, uri)
    return LoadedPrompt.read(found.version, found.weights, datetime.now(UTC))


class PromptLoader:
    """`load` never gives a torn or altered prompt. `now`: the clock, seconds since 1970."""

    def __init__(self, parts: Parts, ttl_s: float, now: Callable[[], float] = time.time) -> None:
        self._parts, self._ttl_s, self._now = parts, ttl_s, now
        origin = without_password(parts.settings.database_url)
        self._cache = PromptCache(parts.settings.prompt_cache, origin)
        self._lock = threading.Lock()
        self._held: LRUCache[str, LoadedPrompt] = LRUCache(MAX_BYTES_IN_MEMORY, _num_bytes)
        self._held_lock = threading.Lock()
        #: When the registry (None), or the weights of a reference, could not be had.
        self._failed_at: dict[str | None, float] = {}

    def load(self, text: str) -> LoadedPrompt:
        """The prompt that `TASK`, `TASK@7` or `TASK@production` means.

        Raises InvalidInput or UnknownName; without a copy, also what keeps one from being made:
        DatabaseUnavailable, SchemaMismatch, StoreUnavailable or IntegrityError.
        """
        ref = str(PromptRef.parse(text))
        with self._held_lock:
            held = self._held.get(ref)
        if held is None or not self._is_recent(held.checked_at.timestamp(), self._ttl_s):
            held = self._read(ref)
        # The caller may change its tensor.
        return replace(held, virtual_tokens=held.virtual_tokens.clone())

    def _read(self, ref: str) -> LoadedPrompt:
        """From the copy in the folder, if it is recent; else the registry is asked."""
        prompt = self._cache.get(ref)
        if prompt is None or not self._is_recent(prompt.seen_at, self._ttl_s):
            prompt = self._ask(ref, prompt)
        checked_at = datetime.fromtimestamp(prompt.seen_at, UTC)
        read = LoadedPrompt.read(prompt.version, prompt.weights, checked_at)
        with self._held_lock, contextlib.suppress(ValueError):  # one that is too large
            self._held[ref] = read
        return read

    def _ask(self, ref: str, known: CachedPrompt | None) -> CachedPrompt:
        """Ask the registry, one thread at a time; one that hangs holds up nobody with a copy."""
        if not self._lock.acquire(timeout=-1 if known is None else WAIT_S):
            assert known is not None, "without a copy one waits"
            return known
        try:
            known = self._cache.get(ref)  # another thread may just have asked
            if known is not None and self._is_settled(ref, known):
                return known
            return self._renewed(ref, known)
        finally:
            self._lock.release()

    def _renewed(self, ref: str, known: CachedPrompt | None) -> CachedPrompt:
        try:
            version = self._resolve(ref)
        except (DatabaseUnavailable, SchemaMismatch) as error:
            return self._older(ref, known, error, None)
        except UnknownName:
            self._cache.drop(ref)
            raise
        try:
            weights = self._weights(version, known)
        except (StoreUnavailable, IntegrityError) as error:
            return self._older(ref, known, error, ref)
        prompt = CachedPrompt(version, weights, self._now())
        self._cache.put(ref, prompt)
        return prompt

    def _resolve(self, ref: str) -> PromptVersion:
        url = self._parts.settings.database_url
        if migrate.is_new(url):  # its file was moved away; opening it would make another
            raise DatabaseUnavailable(
                f"{without_password(url)}: there is no registry",
                "Set TUTTI_DATABASE_URL to the team's, or train a prompt first.",
            )
        return self._parts.prompts.resolve(PromptRef.parse(ref))

    def _weights(self, version: PromptVersion, known: CachedPrompt | None) -> bytes:
        digest = version.artifacts[WEIGHTS].digest
        if known is not None and known.version.artifacts[WEIGHTS].digest == digest:
            return known.weights
        return self._parts.artifacts.get_bytes(digest)

    def _older(
        self, ref: str, known: CachedPrompt | None, error: TuttiError, failed: str | None
    ) -> CachedPrompt:
        """The copy there is, with a warning; without one, the error."""
        if known is None:
            raise error
        self._failed_at[failed] = self._now()
        age = timedelta(seconds=round(max(0.0, self._now() - known.seen_at)))
        logger.warning(
            f"{ref} cannot be looked up now; serving {known.version.ref}, which it meant {age} "
            f"(h:mm:ss) ago: {error.message}"
        )
        return known

    def _is_settled(self, ref: str, known: CachedPrompt) -> bool:
        """Whether the copy is recent, or it is too early to ask again."""
        pause_s = min(self._ttl_s, RETRY_S)
        failed = (self._failed_at[key] for key in (None, ref) if key in self._failed_at)
        return self._is_recent(known.seen_at, self._ttl_s) or any(
            self._is_recent(at, pause_s) for at in failed
        )

    def _is_recent(self, at: float, seconds: float) -> bool:
        """A time in the future, of a clock that was set back, is not recent."""
        return 0 <= self._now() - at < seconds


def _num_bytes(prompt: LoadedPrompt) -> int:
    return prompt.virtual_tokens.nbytes
