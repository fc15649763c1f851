"""What an archived artifact may hold, by its role: safetensors of the right shape, or JSON of the
right form. Nothing is ever unpickled."""

import io
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from encoders.errors import WeightsError
from encoders.files.weights_file import WeightsFile, load_tensors
from orchestrator.upkeep.archive_manifest import Name

Point = tuple[int, float]
_CURVE: TypeAdapter[dict[str, list[Point]]] = TypeAdapter(dict[Name, list[Point]])
_ROLES = ("encoder", "prompt_embeddings", "curve", "sweep")


class _Trial(BaseModel):
    model_config = ConfigDict(extra="allow")

    trial: int
    values: dict[str, Any]
    steps: int
    best: float | None
    best_loss: float | None
    best_step: int
    state: str


class _Sweep(BaseModel):
    model_config = ConfigDict(extra="allow")

    metric: Name
    trials: list[_Trial]


def check_content(role: str, data: bytes, config: Mapping[str, Any]) -> None:
    """Raise ValueError for what an artifact of this role never is. Its digest is right already."""
    try:
        if role == "prompt_embeddings":
            shape = (config["num_virtual_tokens"], config["token_dim"])
            load_tensors(data, {"prompt_embeddings": shape})
        elif role == "encoder":
            WeightsFile(io.BytesIO(data), len(data), "the weights").read()
        elif role == "curve":
            _CURVE.validate_json(data)
        elif role == "sweep":
            _Sweep.model_validate_json(data)
        else:
            raise ValueError(f"no version has such an artifact; there are {', '.join(_ROLES)}")
    except WeightsError as error:
        raise ValueError(str(error)) from error
    except ValidationError as error:
        raise ValueError(error.errors(include_url=False)[0]["msg"]) from error
