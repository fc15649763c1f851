"""Tutti's side: one training step of many tasks, by the product's own RankLoop and TaskTrainer.

One rank, no Ray, no DeepSpeed engine, no evaluations; events go nowhere.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor
from torch.profiler import record_function

from benchmarks.workload import BenchmarkTask, Workload
from encoders.bank.encoder_bank import EncoderBank
from encoders.bank.stacked_optimizer import named_views
from encoders.packed.context_cache import CacheBudget, ContextCache
from encoders.packed.packed_model import PackedModel
from encoders.packed.packing import PackedBatch, PackedRow
from orchestrator.domain.gang import GangEvent, TaskFailed
from orchestrator.domain.task_spec import (
    DataSpec,
    EncoderSpec,
    EvaluationSpec,
    TaskSpec,
    TrainingSpec,
)
from orchestrator.training.rank_loop import RankLoop
from orchestrator.training.rank_passes import RankPasses, Take
from orchestrator.training.sharded_base import ShardedBase
from orchestrator.training.task_data import TaskData
from orchestrator.training.task_run import TaskRun
from orchestrator.training.task_trainer import TaskTrainer

PASSES = "forward and backward passes"  # their span in a profile
NEVER = 10_000_000


class TuttiLoop:
    """Trains all tasks at once; a forward pass takes at most `max_positions`.

    With a `cache` the texts before prompts are computed in the step that first needs them.
    """

    def __init__(
        self,
        model: PackedModel,
        tasks: Sequence[BenchmarkTask],
        workload: Workload,
        max_positions: int,
        cache: ContextCache | None = None,
    ) -> None:
        base = ShardedBase(model, zero_stage=0)
        cache = ContextCache(model, CacheBudget(0)) if cache is None else cache
        self._passes = CountedPasses(base, cache, max_positions)
        bank = EncoderBank()
        self._trainers = {
            task.name: _trainer(task, workload, model.token_dim, bank) for task in tasks
        }
        runs = [TaskRun(name, trainer) for name, trainer in self._trainers.items()]
        self._steps_left = 0
        self._loop = RankLoop(
            base, self._passes, runs, refuse_failures, lambda run: None,
            is_stopping=self._is_stopping,
        )  # fmt: skip

    def step(self) -> dict[str, float]:
        """One optimizer step of each task; returns the tasks' losses before it."""
        self._passes.reset()
        self._steps_left = 1
        self._loop.run()
        return {name: trainer.curve["loss"][-1][1] for name, trainer in self._trainers.items()}

    def _is_stopping(self) -> bool:
        """Asked by the loop before each step."""
        self._steps_left -= 1
        return self._steps_left < 0

    @property
    def num_positions(self) -> int:
        """Of the last step, as the next two."""
        return self._passes.num_positions

    @property
    def num_passes(self) -> int:
        return self._passes.num_passes

    @property
    def num_kept(self) -> int:
        """Positions whose logits were computed."""
        return self._passes.num_kept

    def weights(self, name: str) -> dict[str, Tensor]:
        """A task's encoder weights, under PEFT's names."""
        return self._trainers[name].slot.weights()

    def gradients(self, name: str) -> dict[str, Tensor]:
        """The first step's gradient of every encoder parameter of a task.

        The bank keeps no gradients; after one step AdamW's first moment is (1 - beta1) of it.
        """
        slot = self._trainers[name].slot
        if slot.num_steps != 1:
            raise ValueError(f"{slot.num_steps} steps were taken: the first gradient is gone")
        moment = slot.block.optimizer_state(slot.row)["exp_avg"]
        gradient = moment / (1 - slot.options.betas[0])
        named = named_views(slot.block.shape.parameters, gradient[None])
        return {key: value[0] for key, value in named.items()}


class CountedPasses(RankPasses):
    """RankPasses that counts what it runs since `reset`."""

    def __init__(self, base: ShardedBase, cache: ContextCache, max_positions: int) -> None:
        super().__init__(base, cache, max_positions)
        self.reset()

    def reset(self) -> None:
        self.num_positions = self.num_passes = self.num_kept = 0

    def run(
        self,
        packs: Sequence[tuple[PackedRow, ...]],
        virtual_tokens: Mapping[str, Tensor],
        take: Take,
        trains: bool,
    ) -> int:
        def count(index: int, logits: Tensor, batch: PackedBatch) -> None:
            self.num_positions += batch.num_positions
            self.num_passes += 1
            self.num_kept += len(batch.kept)
            take(index, logits, batch)

        with record_function(PASSES):
            return super().run(packs, virtual_tokens, count, trains)


def refuse_failures(events: Sequence[GangEvent]) -> None:
    """A benchmark's task that fails ends the benchmark: the others' time would mean nothing."""
    for event in events:
        if isinstance(event, TaskFailed):
            raise RuntimeError(f"{event.job_id}: {event.reason}")


def _trainer(
    task: BenchmarkTask, workload: Workload, token_dim: int, bank: EncoderBank
) -> TaskTrainer:
    spec = TaskSpec(
        task=task.name,
        base="benchmark",
        template=f"{{prompt:{workload.num_virtual_tokens}}}{{text}} {{answer}}",
        answer="answer",
        encoder=EncoderSpec(type="mlp", hidden_size=workload.hidden_size),
        data=DataSpec(train="train.jsonl", eval="eval.jsonl"),
        training=TrainingSpec(
            steps=NEVER,
            batch_size=workload.batch_size,
            learning_rate=task.learning_rate,
            schedule="constant",
            max_grad_norm=None,
            seed=task.seed,
        ),
        evaluation=EvaluationSpec(every=NEVER),
    )
    data = TaskData({"train": task.examples, "eval": ()}, (), (), ends_answer=False)
    return TaskTrainer(spec, data, token_dim, bank=bank)
