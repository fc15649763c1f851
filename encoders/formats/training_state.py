"""A training's whole state on disk, from which it resumes bit for bit: safetensors and JSON alone.

A state is two files named by their sha256, and a manifest that names them, written last. A process
killed at any instant leaves the previous state or the new one, never a mixture; a file that was
damaged or changed is refused with both digests. One process writes a folder at a time.
"""

import copy
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from encoders.errors import WeightsError
from encoders.files.durable_file import PART_SUFFIX, write_durably
from encoders.files.state_tree import flatten_state, restore_state
from encoders.files.untrusted_file import read_json
from encoders.files.weights_file import check_finite, dump_tensors, open_weights

MANIFEST_NAME = "training_state.json"
FORMAT = "tutti-training-state-1"
MAX_MANIFEST_BYTES = 1 << 12
MAX_TREE_BYTES = 1 << 24
_NO_GENERATORS: Mapping[str, torch.Generator] = MappingProxyType({})
_TREE, _TENSORS = "tree-{}.json", "tensors-{}.safetensors"


@dataclass(frozen=True)
class TrainingState:
    """What `save_training_state` was given.

    `rng` holds the states of torch's own generators ("cpu", "cuda:0", ...), `generators` those of
    the named ones. Raises WeightsError for parts of other types.
    """

    encoder: dict[str, Tensor]
    optimizer: dict[str, Any]
    scheduler: dict[str, Any] | None
    rng: dict[str, Tensor]
    generators: dict[str, Tensor]
    step: int
    data_position: Any
    config: dict[str, Any] | None

    def __post_init__(self) -> None:
        if type(self.step) is not int or self.step < 0:
            raise WeightsError(f"step is {self.step!r}; it must be a whole number from 0 up")
        for name in ("encoder", "optimizer", "rng", "generators"):
            if not isinstance(getattr(self, name), dict):
                raise WeightsError(f"{name} is no dict")
        for name in ("scheduler", "config"):
            if not isinstance(getattr(self, name), dict | None):
                raise WeightsError(f"{name} is neither None nor a dict")
        for value in (*self.encoder.values(), *self.rng.values(), *self.generators.values()):
            if not isinstance(value, Tensor):
                raise WeightsError("encoder, rng and generators must hold tensors alone")

    def restore(
        self,
        encoder: nn.Module,
        optimizer: Optimizer,
        scheduler: LRScheduler | None = None,
        generators: Mapping[str, torch.Generator] = _NO_GENERATORS,
    ) -> None:
        """Put everything back into new objects of the same kinds, torch's own generators last.

        Raises WeightsError where they do not fit the state; then their contents are undefined.
        """
        if (scheduler is None) != (self.scheduler is None):
            raise WeightsError("the state and the training do not both have an LR scheduler")
        if generators.keys() != self.generators.keys():
            raise WeightsError(
                f"the state has the generators {sorted(self.generators)}, not {sorted(generators)}"
            )
        try:
            encoder.load_state_dict(self.encoder)
            optimizer.load_state_dict(copy.deepcopy(self.optimizer))  # it keeps what it is given
            if scheduler is not None and self.scheduler is not None:
                scheduler.load_state_dict(copy.deepcopy(self.scheduler))
            for name, generator in generators.items():
                generator.set_state(self.generators[name])
            _set_rng(self.rng)
        except (RuntimeError, TypeError, ValueError, KeyError, IndexError) as error:
            raise WeightsError(f"the state does not fit this training: {error}") from error


def save_training_state(
    folder: str | Path,
    *,
    encoder: nn.Module,
    optimizer: Optimizer,
    step: int,
    scheduler: LRScheduler | None = None,
    generators: Mapping[str, torch.Generator] = _NO_GENERATORS,
    data_position: Any = None,
    config: Mapping[str, Any] | None = None,
) -> None:
    """Write a training's whole state into `folder`, replacing the state there.

    `encoder` is all that is trained, `generators` the named random generators beside torch's own
    (a data loader's), `data_position` anything of plain values that finds the next batch, `config`
    the encoder's `to_dict()`. Raises WeightsError for what cannot be kept, NaN or infinity among
    the tensors too, and OSError; the previous state is then untouched.
    """
    state = TrainingState(
        encoder=dict(encoder.state_dict()),
        optimizer=optimizer.state_dict(),
        scheduler=None if scheduler is None else scheduler.state_dict(),
        rng=_rng(),
        generators={name: generator.get_state() for name, generator in generators.items()},
        step=step,
        data_position=data_position,
        config=None if config is None else dict(config),
    )
    tensors: dict[str, Tensor] = {}
    values = {name: flatten_state(value, name, tensors) for name, value in vars(state).items()}
    check_finite(tensors, f"{folder}: not saved")
    tree = json.dumps(values, sort_keys=True).encode()
    if len(tree) > MAX_TREE_BYTES:
        raise WeightsError(
            f"{folder}: not saved: beside its tensors the state takes {len(tree)} bytes; at most "
            f"{MAX_TREE_BYTES} are allowed: put long lists of data_position into a tensor"
        )
    _write(Path(folder), tree, dump_tensors(tensors))


def load_training_state(folder: str | Path) -> TrainingState:
    """Read the state in `folder`. Raises WeightsError, with the file and both digests where one is
    damaged, before memory is taken."""
    folder = Path(folder)
    tree_digest, tensors_digest = _read_manifest(folder / MANIFEST_NAME)
    tree_path = folder / _TREE.format(tree_digest)
    tree = read_json(tree_path, MAX_TREE_BYTES, tree_digest)
    with open_weights(folder / _TENSORS.format(tensors_digest), sha256=tensors_digest) as weights:
        tensors = weights.read()
    try:
        return _state_of(tree, tensors)
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{tree_path}: not a training state: {error}") from error


def _write(folder: Path, tree: bytes, tensors: bytes) -> None:
    tree_digest, tensors_digest = (hashlib.sha256(d).hexdigest() for d in (tree, tensors))
    names = _TREE.format(tree_digest), _TENSORS.format(tensors_digest)
    manifest = {"format": FORMAT, "tree_sha256": tree_digest, "tensors_sha256": tensors_digest}
    write_durably(folder / names[0], [tree])
    write_durably(folder / names[1], [tensors])
    write_durably(folder / MANIFEST_NAME, [json.dumps(manifest, sort_keys=True).encode()])
    for path in _own_files(folder):
        if path.name not in names:
            path.unlink()


def _own_files(folder: Path) -> list[Path]:
    """Files of all states, and what killed writers left of one; never anything else."""
    digest = "[0-9a-f]" * 64
    files = [_TREE.format(digest), _TENSORS.format(digest)]
    parts = [f".{name}.*{PART_SUFFIX}" for name in (*files, MANIFEST_NAME)]
    return [path for pattern in (*files, *parts) for path in folder.glob(pattern)]


def _read_manifest(path: Path) -> tuple[str, str]:
    match read_json(path, MAX_MANIFEST_BYTES):
        case {"format": format_, **rest} if format_ != FORMAT:
            raise WeightsError(f"{path}: its format is {format_!r}; this version reads {FORMAT}")
        case {"tree_sha256": str(tree), "tensors_sha256": str(tensors), "format": _, **rest}:
            if not rest and all(re.fullmatch("[0-9a-f]{64}", d) for d in (tree, tensors)):
                return tree, tensors
    raise WeightsError(f"{path}: not the manifest of a training state")


def _state_of(tree: Any, tensors: dict[str, Tensor]) -> TrainingState:
    names = {field.name for field in fields(TrainingState)}
    if not isinstance(tree, dict) or tree.keys() != names:
        raise ValueError(f"it must have exactly {', '.join(sorted(names))}")
    state = TrainingState(**{name: restore_state(value, tensors) for name, value in tree.items()})
    if tensors:
        raise ValueError(f"it leaves out the tensors {sorted(tensors)[:6]}")
    return state


def _rng() -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_initialized():
        states |= {f"cuda:{i}": s for i, s in enumerate(torch.cuda.get_rng_state_all())}
    return states


def _set_rng(states: Mapping[str, Tensor]) -> None:
    devices = {"cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))}
    if "cpu" not in states or states.keys() - devices:
        raise ValueError(
            f"it holds the random states of {sorted(states)}, this machine has {sorted(devices)}; "
            "to go on inexactly, take the others out of the state's rng"
        )
    torch.set_rng_state(states["cpu"])
    for device in states.keys() - {"cpu"}:
        torch.cuda.set_rng_state(states[device], device)
