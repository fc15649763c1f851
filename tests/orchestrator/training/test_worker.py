"""What the settings make of a rank."""

from typing import Any

import torch

from encoders.packed.context_cache import ContextCache
from encoders.packed.packing import PackedRow, pack
from orchestrator.training.sharded_base import ShardedBase
from orchestrator.training.worker import WorkerOptions, _context_cache


def test_the_context_cache_is_as_the_settings_say(base: ShardedBase) -> None:
    row = PackedRow("a", (5, 6, 7, -1))

    def filled(**options: Any) -> ContextCache:
        cache = _context_cache(base, WorkerOptions(num_threads=1, checkpoint_s=1.0, **options))
        for texts in cache.missing([row], 64):
            cache.compute(texts)
        return cache

    exact = filled(context_memory_bytes=1 << 20)
    half = filled(context_disk_bytes=1 << 20, context_dtype="bfloat16")
    assert exact.memory_bytes == 2 * half.disk_bytes > 0
    assert half.memory_bytes == exact.disk_bytes == 0
    layers = half.layers(pack([row], {"a": 1}, half))
    assert layers is not None
    assert layers[0].key.dtype == torch.bfloat16
    assert len(filled()) == 0
