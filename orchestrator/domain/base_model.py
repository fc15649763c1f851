"""A base model: frozen, registered by name, pinned by its fingerprint."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from orchestrator.domain.digest import digest_json


@dataclass(frozen=True)
class BaseModelRecord:
    """A registered base model. `files` maps each file's name to its sha256.

    `source_digest` identifies what it was made from, so that adding it again is a no-op.
    """

    name: str
    fingerprint: str
    source: str
    source_digest: str
    files: Mapping[str, str]
    architecture: str
    num_parameters: int
    hidden_size: int
    max_length: int
    created_at: datetime


def fingerprint(files: Mapping[str, str], config: Mapping[str, Any]) -> str:
    """sha256 over the canonical config and the digests of tokenizer and weight files.

    Keys of the config that name a place or a program version say nothing about the function the
    model computes, so they do not count.
    """
    volatile = {"_name_or_path", "transformers_version", "torch_dtype", "dtype"}
    canonical = {key: value for key, value in config.items() if key not in volatile}
    others = {name: digest for name, digest in files.items() if name != "config.json"}
    return digest_json({"config": canonical, "files": others})
