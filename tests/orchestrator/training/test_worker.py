"""What a rank does before it trains: one task's broken data never reaches its neighbours."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from encoders.bank.encoder_bank import EncoderBank
from encoders.packed.context_cache import ContextCache
from encoders.packed.packing import PackedRow, pack
from encoders.text.tokenization import TextTokenizer
from orchestrator.artifacts.artifact_store import ArtifactStore
from orchestrator.domain.digest import digest_json
from orchestrator.domain.gang import GangOrder, TaskFailed, TaskOrder
from orchestrator.training.checkpoint import dump_checkpoint
from orchestrator.training.sharded_base import ShardedBase
from orchestrator.training.task_run import TaskRun
from orchestrator.training.worker import WorkerOptions, _context_cache, _look_up_starts, _open
from tests.orchestrator.training.conftest import make_spec
from tests.tiny import colour_rows

ROWS = "\n".join(map(json.dumps, colour_rows(4))).encode()


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(str(tmp_path))


def open_task(
    store: ArtifactStore,
    tokenizer: TextTokenizer,
    base: ShardedBase,
    datasets: dict[str, str],
    limit: int = 256,
    checkpoint: str | None = None,
    **changes: Any,
) -> tuple[TaskRun | None, list[Any]]:
    order = TaskOrder("job", make_spec(**changes), datasets, "f" * 64, 10.0, checkpoint)
    ended: list[Any] = []
    return _open(order, store, tokenizer, base, limit, ended.append), ended


def test_a_task_is_opened_from_its_stored_data(
    store: ArtifactStore, tokenizer: TextTokenizer, base: ShardedBase
) -> None:
    digest = store.put_bytes(ROWS).digest
    run, ended = open_task(store, tokenizer, base, {"train": digest, "eval": digest})
    assert run is not None
    assert (run.job_id, run.name, ended) == ("job", "colour", [])
    assert run.trainer.data.num_rows == {"train": 4, "eval": 4}


@pytest.mark.parametrize(
    ("data", "limit", "reason"),
    [
        (b"no json", 256, "colour.eval:1: not JSON"),
        (b'{"word": "a"}', 256, "colour.eval:1: the row lacks the field 'colour'"),
        (b"", 256, "the data set is empty"),
        (ROWS, 5, "tokens (virtual tokens and"),
        (None, 256, "is missing from the store"),
    ],
)
def test_a_task_that_cannot_be_opened_fails_alone_with_its_reason(
    store: ArtifactStore,
    tokenizer: TextTokenizer,
    base: ShardedBase,
    data: bytes | None,
    limit: int,
    reason: str,
) -> None:
    bad = digest_json("nothing") if data is None else store.put_bytes(data).digest
    datasets = {"train": store.put_bytes(ROWS).digest, "eval": bad}
    run, ended = open_task(store, tokenizer, base, datasets, limit)
    assert run is None
    (failure,) = ended
    assert isinstance(failure, TaskFailed)
    assert reason in failure.reason


def test_altered_data_is_refused(
    store: ArtifactStore, tokenizer: TextTokenizer, base: ShardedBase, tmp_path: Path
) -> None:
    digest = store.put_bytes(ROWS).digest
    (path,) = (path for path in tmp_path.rglob("*") if path.name == digest)
    path.write_bytes(ROWS.replace(b"red", b"tea"))
    run, ended = open_task(store, tokenizer, base, {"train": digest, "eval": digest})
    assert run is None
    assert "the bytes are not what their digest says" in ended[0].reason


def test_a_task_goes_on_from_its_checkpoint(
    store: ArtifactStore, tokenizer: TextTokenizer, base: ShardedBase
) -> None:
    digest = store.put_bytes(ROWS).digest
    run, _ = open_task(store, tokenizer, base, {"train": digest, "eval": digest})
    assert run is not None
    run.trainer.slot.num_steps = 3
    checkpoint = store.put_bytes(dump_checkpoint(run.state())).digest
    datasets = {"train": digest, "eval": digest}
    resumed, ended = open_task(store, tokenizer, base, datasets, checkpoint=checkpoint)
    assert resumed is not None
    assert (resumed.trainer.step, ended) == (3, [])


def test_the_trials_of_a_sweep_are_opened_each_with_its_start(
    store: ArtifactStore, tokenizer: TextTokenizer, base: ShardedBase
) -> None:
    inits = [None, {"from": "vocabulary"}]
    spec = make_spec(sweep={"over": {"encoder.init": inits, "training.seed": [1, 2]}})
    digest = store.put_bytes(ROWS).digest
    order = TaskOrder("job", spec, {"train": digest, "eval": digest}, "f" * 64, 10.0)
    gang = GangOrder("gang", "f" * 64, 256, "code", 0, ((order,),))
    starts = _look_up_starts(gang, [order], tokenizer, base)
    assert list(starts) == ["colour/2", "colour/3"]
    bank = EncoderBank()
    run = _open(order, store, tokenizer, base, 256, list[Any]().append, bank, starts)
    assert [trainer.key for trainer in run.training] == [f"colour/{i}" for i in range(4)]
    scale = [float(trainer.virtual_tokens().norm(dim=1).mean()) for trainer in run.training]
    assert max(scale[2:]) < 0.5 * min(scale[:2]), "the base's embeddings are small, noise is not"
    assert len(bank) == 4


@pytest.mark.parametrize("kind", ["missing", "altered", "another task's"])
def test_a_checkpoint_that_is_of_no_use_costs_time_alone(
    store: ArtifactStore,
    tokenizer: TextTokenizer,
    base: ShardedBase,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    kind: str,
) -> None:
    digest = store.put_bytes(ROWS).digest
    datasets = {"train": digest, "eval": digest}
    other, _ = open_task(store, tokenizer, base, datasets, encoder={"type": "embedding"})
    assert other is not None
    other.trainer.slot.num_steps = 3
    checkpoint = store.put_bytes(dump_checkpoint(other.state())).digest
    if kind == "missing":
        store.discard(checkpoint)
    if kind == "altered":
        (path,) = (path for path in tmp_path.rglob("*") if path.name == checkpoint)
        path.write_bytes(path.read_bytes()[:-1])
    run, ended = open_task(store, tokenizer, base, datasets, checkpoint=checkpoint)
    assert run is not None
    assert (run.trainer.step, ended) == (0, [])
    assert "colour: starts again, its checkpoint is of no use" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("inits", "num_calls"),
    [([None, None], 0), ([None, "vocabulary"], 2), (["vocabulary", None], 2)],
)
def test_all_ranks_look_up_starts_if_any_of_their_tasks_wants_one(
    tokenizer: TextTokenizer, base: ShardedBase, inits: list[str | None], num_calls: int
) -> None:
    encoders = [{"init": {"from": init}} if init else {} for init in inits]
    ranks = tuple(
        (TaskOrder(f"job-{rank}", make_spec(encoder=encoder), {}, "f" * 64, 10.0, None),)
        for rank, encoder in enumerate(encoders)
    )
    gang = GangOrder("gang", "f" * 64, 256, "code", 3, ranks)
    calls: list[None] = []
    hook = base.model.model.get_input_embeddings().register_forward_hook(
        lambda *_: calls.append(None)
    )
    for orders, init in zip(ranks, inits, strict=True):
        calls.clear()
        starts = _look_up_starts(gang, orders, tokenizer, base)
        assert len(calls) == num_calls
        assert list(starts) == ([orders[0].spec.task] if init else [])
    hook.remove()


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
