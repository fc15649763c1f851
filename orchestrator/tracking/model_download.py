"""A prompt out of MLflow's model registry, for those who have no registry of Tutti's at hand.

Only JSON and safetensors are read; each file is checked against the digest that the model version's
tags lead to. Who may write to MLflow can change both: `Tutti.load` asks the registry instead.
"""

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from encoders.errors import WeightsError
from encoders.files.untrusted_file import open_untrusted
from orchestrator.domain.errors import IntegrityError, InvalidInput, TuttiError, UnknownName
from orchestrator.domain.prompt_version import PromptVersion
from orchestrator.domain.version_record import read_version
from orchestrator.tracking.mlflow_client import explain, open_client
from orchestrator.tracking.version_run import DIGEST_TAG, REF_TAG

WEIGHTS, RECORD = "prompt_embeddings", "version.json"
MAX_RECORD_BYTES, MAX_WEIGHTS_BYTES = 1 << 24, 1 << 32
_URI = re.compile(r"models:/([^/@]+)(?:@([^/@]+)|/([1-9]\d*))")


@dataclass(frozen=True)
class Download:
    """A version and the bytes of its virtual tokens, which match its digest."""

    version: PromptVersion
    weights: bytes


def download_prompt(model_uri: str, tracking_uri: str) -> Download:
    """The prompt of `models:/TASK@ALIAS` or `models:/TASK/MODEL_VERSION`.

    Raises InvalidInput for another URI or a model that Tutti did not make, UnknownName,
    IntegrityError for bytes that are not what their digest says, TuttiError for an MLflow that
    does not answer.
    """
    match = _URI.fullmatch(model_uri)
    if match is None:
        raise InvalidInput(
            f"{model_uri!r} is not the URI of a model version",
            "Write models:/TASK@ALIAS or models:/TASK/MODEL_VERSION.",
        )
    try:
        return _download(_find(match, tracking_uri), model_uri, tracking_uri)
    except TuttiError:
        raise
    except Exception as error:  # MLflow raises nearly every kind
        raise TuttiError(
            explain(error, tracking_uri), "Check MLFLOW_TRACKING_URI, and that the server answers."
        ) from error


def _find(match: re.Match[str], tracking_uri: str) -> Any:
    client, (name, alias, number) = open_client(tracking_uri), match.groups()
    from mlflow.exceptions import MlflowException

    try:
        if alias is not None:
            return client.get_model_version_by_alias(name, alias)
        return client.get_model_version(name, number)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        raise UnknownName(f"{match[0]}: {explain(error, tracking_uri)}") from error


def _download(model: Any, model_uri: str, tracking_uri: str) -> Download:
    tags = model.tags
    if REF_TAG not in tags or DIGEST_TAG not in tags:
        raise InvalidInput(
            f"{model_uri}: version {model.version} is not Tutti's: it has no tag {DIGEST_TAG}"
        )
    with tempfile.TemporaryDirectory(prefix="tutti-mlflow-") as folder:
        record = _fetch(model, RECORD, tracking_uri, folder, MAX_RECORD_BYTES)
        version = read_version(record, model_uri)
        if (version.ref, version.digest) != (tags[REF_TAG], tags[DIGEST_TAG]):
            raise IntegrityError(
                f"{model_uri}: its tags say {tags[REF_TAG]}, {tags[DIGEST_TAG]}, but its files are "
                f"{version.ref}, {version.digest}"
            )
        digest = version.artifacts[WEIGHTS].digest
        file = f"{WEIGHTS}.safetensors"
        weights = _fetch(model, file, tracking_uri, folder, MAX_WEIGHTS_BYTES, digest)
    return Download(version, weights)


def _fetch(
    model: Any,
    file: str,
    tracking_uri: str,
    folder: str,
    max_bytes: int,
    sha256: str | None = None,
) -> bytes:
    """One file of a model version. Raises IntegrityError if it is too large or another."""
    from mlflow.artifacts import download_artifacts

    uri = f"{model.source.rstrip('/')}/{file}"
    path = Path(download_artifacts(uri, dst_path=folder, tracking_uri=tracking_uri))
    try:
        with open_untrusted(path, max_bytes, sha256) as (opened, _):
            return opened.read()
    except WeightsError as error:
        raise IntegrityError(f"{model.name} version {model.version}: {error}") from error
