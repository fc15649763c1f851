"""Plans of batch runs, and answers to their shards, for tests of the ledger."""

from typing import Any

from orchestrator.domain.batch import BatchSettings
from orchestrator.domain.batch_run import Pin, RunPlan, ShardClaim, ShardDone, TaskCount
from orchestrator.domain.digest import digest_json


def make_plan(sizes: tuple[int, ...] = (3, 3, 2), **changes: Any) -> RunPlan:
    values: dict[str, Any] = {
        "input": {"source": "in.jsonl", "files": [], "shards": []},
        "settings": BatchSettings().to_json(),
        "pins": {"colour@production": Pin("colour", 1, "d" * 64, "b" * 64)},
        "output": "/out",
        "format": "jsonl",
        "shard_rows": 3,
        "shard_sizes": sizes,
        "num_threads": 1,
        "code_version": "0.1.0",
    }
    return RunPlan(**{**values, **changes})


def answer(claim: ShardClaim, num_rows: int, content: str = "") -> ShardDone:
    return ShardDone(
        number=claim.number,
        epoch=claim.epoch,
        file=f"part-{claim.number:05d}.jsonl",
        sha256=digest_json([claim.number, content]),
        num_bytes=10,
        num_rows=num_rows,
        num_errors=1,
        seconds=0.5,
        counts={"colour@1": TaskCount(num_rows, 1, 7, 50)},
    )
