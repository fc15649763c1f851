"""Prompt versions: found, loaded, asked about."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.domain.prompt_version import PromptRef, PromptVersion
from orchestrator.domain.version_filter import parse_filter
from orchestrator.sdk.verbs import Verbs

if TYPE_CHECKING:
    from orchestrator.inference.loaded_prompt import LoadedPrompt
    from orchestrator.prompt_loading import PromptLoader
    from orchestrator.questions.prompt_compare import Comparison
    from orchestrator.questions.prompt_diff import PromptDiff
    from orchestrator.questions.prompt_lineage import PromptLineage
    from orchestrator.questions.stale_prompts import StalePrompt


Versions = list[PromptVersion]


class PromptVerbs(Verbs):
    """Versions and questions about them."""

    def prompts(
        self,
        task: str | None = None,
        alias: str | None = None,
        limit: int = 100,
        where: str | None = None,
        before: str | None = None,
    ) -> Versions:
        """Versions, the newest first: `where` is a filter ("metrics.accuracy > 0.8 and base = x"),
        `before` the last version of the page before. Raises InvalidInput."""
        tree = parse_filter(where) if where else None
        start = PromptRef.parse(before) if before else None
        return list(self.parts.prompts.list(task, alias, limit, tree, start))

    def load(self, ref: str) -> "LoadedPrompt":
        """The prompt of `TASK`, `TASK@7` or `TASK@production`, verified, ready for a model.

        Answers are kept for `cache_ttl_s` seconds, in memory and in TUTTI_HOME: the version is
        shared, so leave it as it is; the tensor is yours. While registry or store are away,
        an older one is given, with a warning (logger `tutti.cache`). From a coroutine:
        `await asyncio.to_thread(tutti.load, ref)`. Raises UnknownName, IntegrityError and, without
        a copy, DatabaseUnavailable or StoreUnavailable.
        """
        return self._loader.load(ref)

    @cached_property
    def _loader(self) -> "PromptLoader":
        from orchestrator.prompt_loading import PromptLoader

        return PromptLoader(self.parts, self._cache_ttl_s)

    def base_folder(self, fingerprint: str) -> Path:
        """The transformers folder of a base on this machine (`version.lineage.base_fingerprint`),
        every file verified. Needs no registry. Raises IntegrityError."""
        self.parts.base_store.verify(fingerprint)
        return self.parts.base_store.path(fingerprint)

    def trials(self, version: PromptVersion) -> list[dict[str, Any]]:
        """The trials of the sweep that a version won, each with its values and its end; else []."""
        from orchestrator.tracking.trial_runs import read_sweep

        sweep = read_sweep(version, self.parts.artifacts)
        return sweep["trials"] if sweep else []

    def diff(self, a: str, b: str) -> "PromptDiff":
        """How two versions differ: config, metrics, lineage, and the virtual tokens."""
        from orchestrator.questions.prompt_diff import diff_prompts

        return diff_prompts(self.parts, self.prompt(a), self.prompt(b))

    def compare(self, a: str, b: str, data: Path) -> "Comparison":
        """Answer each row of a JSONL file with two versions, here, and say which is better. Raises
        InvalidInput where no row can tell them apart."""
        from orchestrator.questions.prompt_compare import compare_prompts

        return compare_prompts(self.parts, self.prompt(a), self.prompt(b), data)

    def lineage(self, ref: str) -> "PromptLineage":
        """All there is to know of how a version was made and where it was promoted."""
        from orchestrator.questions.prompt_lineage import trace_lineage

        return trace_lineage(self.parts, PromptRef.parse(ref))

    def stale(self, limit: int = 100) -> "list[StalePrompt]":
        """Tasks' newest versions whose base's name means another base now, newest first."""
        from orchestrator.questions.stale_prompts import find_stale

        return find_stale(self.parts, limit)

    def write_retraining(self, stale: "Sequence[StalePrompt]", folder: Path) -> list[Path]:
        """Write the specs, and their data, that train stale prompts again; `submit` takes the paths
        that this returns. Never overwrites: raises InvalidInput."""
        from orchestrator.questions.stale_prompts import write_retraining

        return write_retraining(self.parts, stale, folder)
