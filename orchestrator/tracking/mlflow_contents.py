"""What MLflow holds of ours, read in pages: runs, model versions, aliases. It changes nothing.

Ours is what carries the tags of `version_run`, in a model that is named as its task; all else is
somebody else's and is not looked at.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from orchestrator.domain.prompt_version import PromptVersion
from orchestrator.tracking.version_run import ALIAS_TAG, DIGEST_TAG, REF_TAG

_RUNS, _MODELS = 1000, 1000  # of a page: a run comes with its params and newest metrics
Key = tuple[str, str]


@dataclass
class MlflowContents:
    """`runs` (id and status) and `model_versions` (number and run) by (TASK@NUMBER, digest); `keys`
    the other way round, by task and number. `aliases` by task, with the model version of each;
    those that MLflow cannot have are `tagged`, with `TASK@NUMBER`.
    """

    runs: dict[Key, dict[str, str]] = field(default_factory=lambda: defaultdict(dict))
    model_versions: dict[Key, dict[str, str]] = field(default_factory=lambda: defaultdict(dict))
    keys: dict[tuple[str, str], Key] = field(default_factory=dict)
    aliases: dict[str, dict[str, str]] = field(default_factory=dict)
    tagged: dict[str, dict[str, str]] = field(default_factory=dict)

    @classmethod
    def read(cls, client: Any, experiment_id: str, task: str | None) -> "MlflowContents":
        """Read all, or what is of one task."""
        contents = cls()
        of_task = f"tags.`{REF_TAG}` LIKE '{task or ''}%'"
        for run in _pages(client.search_runs, [experiment_id], of_task, max_results=_RUNS):
            contents.runs[_key(run.data.tags)][run.info.run_id] = run.info.status
        named = f"name = '{task}'" if task else ""
        for model in _pages(client.search_registered_models, named, max_results=_MODELS):
            contents._add_aliases(model)
        for version in _pages(client.search_model_versions, named, max_results=_MODELS):
            contents._add_model_version(version)
        return contents

    def _add_aliases(self, model: Any) -> None:
        self.aliases[model.name] = {name: str(number) for name, number in model.aliases.items()}
        self.tagged[model.name] = {
            tag.removeprefix(ALIAS_TAG): ref
            for tag, ref in model.tags.items()
            if tag.startswith(ALIAS_TAG)
        }

    def _add_model_version(self, version: Any) -> None:
        key = _key(version.tags)
        if key[0].rpartition("@")[0] == version.name:
            self.model_versions[key][str(version.version)] = version.run_id
            self.keys[version.name, str(version.version)] = key


def key_of(version: PromptVersion) -> Key:
    return version.ref, version.digest


def _key(tags: dict[str, str]) -> Key:
    return tags.get(REF_TAG, ""), tags.get(DIGEST_TAG, "")


def _pages(search: Callable[..., Any], *query: Any, **options: Any) -> Iterator[Any]:
    token = None
    while True:
        page = search(*query, page_token=token, **options)
        yield from page
        token = page.token
        if not token:
            return
