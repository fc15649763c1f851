"""From an order to a run: stored data, prompt start, trainer, and the checkpoint to go on from.

Whatever is wrong with one task fails that task alone; a store that gives nothing now is no fault of
its own.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from encoders.bank.encoder_bank import EncoderBank
from encoders.text.tokenization import TextTokenizer
from orchestrator.artifacts.artifact_store import ArtifactStore
from orchestrator.domain.dataset import parse_dataset
from orchestrator.domain.errors import TuttiError
from orchestrator.domain.gang import TaskFailed, TaskOrder
from orchestrator.domain.task_spec import TaskSpec
from orchestrator.training.checkpoint import load_checkpoint
from orchestrator.training.data_parallel import check_in_step
from orchestrator.training.prompt_start import PromptStart, look_up_starts, start_tokens
from orchestrator.training.sharded_base import ShardedBase
from orchestrator.training.sweep_run import open_run
from orchestrator.training.task_data import encode_task, max_row_length
from orchestrator.training.task_run import TaskRun
from orchestrator.training.task_trainer import TaskTrainer
from orchestrator.training.worker_errors import DETERMINISTIC, UNUSABLE, fault_of


class TaskOpening:
    """Opens the runs of one rank, all in one bank. `max_length` is the base's; `orders` are the
    last ones of each job that came here, until `forget`."""

    def __init__(
        self, store: ArtifactStore, tokenizer: TextTokenizer, base: ShardedBase, max_length: int
    ) -> None:
        self._store, self._tokenizer, self._base = store, tokenizer, base
        self._max_length, self._bank = max_length, EncoderBank()
        self.orders: dict[str, TaskOrder] = {}

    def __call__(
        self, orders: Sequence[TaskOrder], all_orders: Sequence[TaskOrder]
    ) -> tuple[list[TaskRun], list[TaskFailed]]:
        """The runs of `orders`, and the failures of the others. Ranks whose passes are tied call it
        together, each with the orders of `all_orders` that are its own. Raises RuntimeError unless
        the jobs that ranks share stand at the same steps on all of them."""
        self.orders |= {order.job_id: order for order in orders}
        failures: list[TaskFailed] = []
        starts = self._look_up_starts(orders, all_orders, failures)
        failed = {failure.job_id for failure in failures}
        runs = []
        for order in orders:
            if order.job_id not in failed:
                try:
                    runs.append(self._open(order, starts))
                except DETERMINISTIC as error:
                    failures.append(_failure(order, error))
        shared = {order.job_id for order in all_orders if order.spec.is_data_parallel}
        if shared:
            check_in_step({run.job_id: run.step for run in runs if run.job_id in shared})
        return runs, failures

    def forget(self, job_id: str, epoch: int) -> None:
        """A job is over here."""
        if job_id in self.orders and self.orders[job_id].epoch == epoch:
            del self.orders[job_id]

    def _look_up_starts(
        self,
        orders: Sequence[TaskOrder],
        all_orders: Sequence[TaskOrder],
        failures: list[TaskFailed],
    ) -> dict[str, PromptStart]:
        """Where this rank's trainers start. All ranks look up if any order asks for it."""
        trials = [trial for order in all_orders for trial in order.spec.trials().values()]
        if all(trial.encoder.init is None for trial in trials):
            return {}
        own: dict[str, TaskSpec] = {}
        for order in orders:
            try:
                for trial in order.spec.trials().values():
                    start_tokens(trial, self._tokenizer)
            except DETERMINISTIC as error:
                failures.append(_failure(order, error))
            else:
                own |= {_key(order, key): trial for key, trial in order.spec.trials().items()}
        embeddings = self._base.model.model.get_input_embeddings()
        return look_up_starts(own, self._tokenizer, embeddings)

    def _open(self, order: TaskOrder, starts: Mapping[str, PromptStart]) -> TaskRun:
        fields = (*order.spec.parsed_template().fields, order.spec.answer)
        datasets = {
            split: parse_dataset(
                self._store.get_bytes(digest), f"{order.spec.task}.{split}", fields
            )
            for split, digest in order.datasets.items()
        }
        longest = max_row_length(order.spec, self._max_length)
        data = encode_task(order.spec, datasets, self._tokenizer, longest)
        token_dim = self._base.model.token_dim

        def make(key: str, spec: TaskSpec) -> TaskTrainer:
            key = _key(order, key)
            return TaskTrainer(spec, data, token_dim, starts.get(key), self._bank, key)

        run = self._resumed(order, lambda: open_run(order.job_id, order.spec, make))
        run.epoch = order.epoch
        return run

    def _resumed(self, order: TaskOrder, fresh: Callable[[], TaskRun]) -> TaskRun:
        """The run as its checkpoint left it; from its start without one, or where it cannot be
        used: a store that does not give it says nothing about it."""
        if order.checkpoint is None:
            return fresh()
        run: TaskRun | None = None
        try:
            state = load_checkpoint(self._store.get_bytes(order.checkpoint))
            run = fresh()
            run.restore(state)
        except UNUSABLE as error:
            if run is not None:
                run.release()
            run = fresh()
            run.start_note = f"starts again, its checkpoint is of no use: {error}"
        else:
            run.start_note = f"goes on after step {run.step} of {run.num_steps}"
        print(f"{order.spec.task}: {run.start_note}")
        return run


def _key(order: TaskOrder, key: str) -> str:
    """Tells a trainer from all of its rank: two jobs may be of one task."""
    return f"{order.job_id}/{key}"


def _failure(order: TaskOrder, error: Any) -> TaskFailed:
    reason = str(error) if isinstance(error, TuttiError | ValueError) else repr(error)
    return TaskFailed(order.job_id, reason, order.epoch, fault_of(error))
