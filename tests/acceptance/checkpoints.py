"""What killed processes leave in an artifact store."""

from collections.abc import Iterable, Iterator
from pathlib import Path


def jobs_of_checkpoints(store: Path, names: Iterable[str]) -> Iterator[str]:
    """The ids of the jobs that the files are checkpoints of: each must be a whole one, but for half
    a write, which no digest names."""
    from orchestrator.training.checkpoint import load_checkpoint

    for name in names:
        if name.startswith(".") and name.endswith(".part"):
            continue
        yield load_checkpoint((store / "sha256" / name[:2] / name).read_bytes())["job"]
