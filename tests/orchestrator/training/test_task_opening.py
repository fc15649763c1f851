"""What a rank does before it trains a task: one task's broken data never reaches its neighbours."""

import json
from pathlib import Path
from typing import Any

import pytest

from encoders.text.tokenization import TextTokenizer
from orchestrator.artifacts.artifact_store import ArtifactStore
from orchestrator.domain.digest import digest_json
from orchestrator.domain.errors import StoreUnavailable
from orchestrator.domain.gang import TaskFailed, TaskOrder
from orchestrator.domain.job import Fault
from orchestrator.domain.task_spec import EncoderSpec, TaskSpec
from orchestrator.training.checkpoint import dump_checkpoint
from orchestrator.training.sharded_base import ShardedBase
from orchestrator.training.task_opening import TaskOpening
from orchestrator.training.task_run import TaskRun
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
) -> tuple[TaskRun | None, list[TaskFailed]]:
    order = TaskOrder("job", make_spec(**changes), datasets, "f" * 64, 10.0, checkpoint, 7)
    runs, failures = TaskOpening(store, tokenizer, base, limit)([order], [order])
    return (runs[0] if runs else None), failures


def test_a_task_is_opened_from_its_stored_data(
    store: ArtifactStore, tokenizer: TextTokenizer, base: ShardedBase
) -> None:
    digest = store.put_bytes(ROWS).digest
    run, ended = open_task(store, tokenizer, base, {"train": digest, "eval": digest})
    assert run is not None
    assert (run.job_id, run.epoch, run.name, ended) == ("job", 7, "colour", [])
    assert run.start_note == "starts"
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
    assert failure.fault == Fault.USER
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
    assert resumed.start_note == "goes on after step 3 of 4"


class Flaky(ArtifactStore):
    """A store that does not give what is `away`."""

    away = ""

    def get_bytes(self, digest: str, max_bytes: int = 1 << 30) -> bytes:
        if digest == self.away:
            raise StoreUnavailable("stale file handle")
        return super().get_bytes(digest, max_bytes)


def test_a_store_that_gives_nothing_now_is_no_fault_of_the_task(
    tmp_path: Path, tokenizer: TextTokenizer, base: ShardedBase
) -> None:
    store = Flaky(str(tmp_path))
    digest = store.put_bytes(ROWS).digest
    datasets = {"train": digest, "eval": digest}
    run, _ = open_task(store, tokenizer, base, datasets)
    assert run is not None
    checkpoint = store.put_bytes(dump_checkpoint(run.state())).digest
    for store.away in (digest, checkpoint):
        run, ended = open_task(store, tokenizer, base, datasets, checkpoint=checkpoint)
        assert run is None
        assert ended == [TaskFailed("job", "stale file handle", 7, Fault.MACHINE)]


def test_a_machine_that_cannot_hold_a_checkpoint_does_not_call_it_useless(
    store: ArtifactStore,
    tokenizer: TextTokenizer,
    base: ShardedBase,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    digest = store.put_bytes(ROWS).digest
    datasets = {"train": digest, "eval": digest}
    run, _ = open_task(store, tokenizer, base, datasets)
    assert run is not None
    checkpoint = store.put_bytes(dump_checkpoint(run.state())).digest

    def restore(run: TaskRun, state: dict[str, Any]) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(TaskRun, "restore", restore)
    with pytest.raises(RuntimeError, match="allocate memory"):
        open_task(store, tokenizer, base, datasets, checkpoint=checkpoint)


def test_an_order_is_forgotten_with_its_epoch(
    store: ArtifactStore, tokenizer: TextTokenizer, base: ShardedBase
) -> None:
    order = TaskOrder("job", make_spec(), {}, "f" * 64, 10.0, epoch=2)
    opening = TaskOpening(store, tokenizer, base, 256)
    opening([order], [order])
    opening.forget("job", 1)
    assert opening.orders == {"job": order}
    opening.forget("job", 2)
    opening.forget("job", 2)
    assert opening.orders == {}


def test_the_trials_of_a_sweep_are_opened_each_with_its_start(
    store: ArtifactStore, tokenizer: TextTokenizer, base: ShardedBase
) -> None:
    inits = [None, {"from": "vocabulary"}]
    spec = make_spec(sweep={"over": {"encoder.init": inits, "training.seed": [1, 2]}})
    digest = store.put_bytes(ROWS).digest
    order = TaskOrder("job", spec, {"train": digest, "eval": digest}, "f" * 64, 10.0)
    (run,), _ = TaskOpening(store, tokenizer, base, 256)([order], [order])
    assert [trainer.key for trainer in run.training] == [f"job/colour/{i}" for i in range(4)]
    scale = [float(trainer.virtual_tokens().norm(dim=1).mean()) for trainer in run.training]
    assert max(scale[2:]) < 0.5 * min(scale[:2]), "the base's embeddings are small, noise is not"


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
    assert run.start_note.startswith("starts again, its checkpoint is of no use: ")
    assert f"colour: {run.start_note}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("inits", "num_calls"),
    [([None, None], 0), ([None, "vocabulary"], 2), (["vocabulary", None], 2)],
)
def test_all_ranks_look_up_starts_if_any_of_their_tasks_wants_one(
    store: ArtifactStore,
    tokenizer: TextTokenizer,
    base: ShardedBase,
    inits: list[str | None],
    num_calls: int,
) -> None:
    digest = store.put_bytes(ROWS).digest
    datasets = {"train": digest, "eval": digest}
    orders = [
        TaskOrder(f"job-{rank}", make_spec(encoder=encoder), datasets, "f" * 64, 10.0)
        for rank, encoder in enumerate({"init": {"from": init}} if init else {} for init in inits)
    ]
    calls: list[None] = []
    hook = base.model.model.get_input_embeddings().register_forward_hook(
        lambda *_: calls.append(None)
    )
    for order in orders:
        calls.clear()
        (run,), failures = TaskOpening(store, tokenizer, base, 256)([order], orders)
        assert (len(calls), failures) == (num_calls, [])
        assert run.job_id == order.job_id
    hook.remove()


def _without_words(spec: TaskSpec) -> EncoderSpec:
    """What no spec file can say: a start at a text of which nothing is left."""
    assert spec.encoder.init is not None
    return spec.encoder.model_copy(
        update={"init": spec.encoder.init.model_copy(update={"text": ""})}
    )


def test_what_is_wrong_with_one_task_is_no_other_tasks_concern(
    store: ArtifactStore, tokenizer: TextTokenizer, base: ShardedBase
) -> None:
    digest, nothing = store.put_bytes(ROWS).digest, store.put_bytes(b"").digest
    good = {"train": digest, "eval": digest}
    spec = make_spec(encoder={"init": {"from": "text", "text": "a"}})
    wordless = spec.model_copy(update={"encoder": _without_words(spec)})
    orders = [
        TaskOrder("empty", make_spec(), {"train": nothing, "eval": digest}, "f" * 64, 10.0),
        TaskOrder("wordless", wordless, good, "f" * 64, 10.0, epoch=2),
        TaskOrder("good", spec, good, "f" * 64, 10.0),
    ]
    runs, failures = TaskOpening(store, tokenizer, base, 256)(orders, orders)
    assert [run.job_id for run in runs] == ["good"]
    reasons = {failure.job_id: failure.reason for failure in failures}
    assert list(reasons) == ["wordless", "empty"]
    assert "has no tokens" in reasons["wordless"]


def test_two_jobs_of_one_task_are_told_apart(
    store: ArtifactStore, tokenizer: TextTokenizer, base: ShardedBase
) -> None:
    digest = store.put_bytes(ROWS).digest
    datasets = {"train": digest, "eval": digest}
    orders = [TaskOrder(job, make_spec(), datasets, "f" * 64, 10.0) for job in ("one", "other")]
    runs, _ = TaskOpening(store, tokenizer, base, 256)(orders, orders)
    assert [run.trainer.key for run in runs] == ["one/colour", "other/colour"]
