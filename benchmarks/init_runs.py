"""Trains real tasks from different starts, all packed into one loop on one process.

A start changes where the prompt begins and nothing else: encoder weights, data order, learning rate
and schedule of a task and seed are the same under every start.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from benchmarks.example_tasks import read_example, read_task_data
from encoders.bank.encoder_bank import EncoderBank
from encoders.modules.prompt_init import embedding_scale, mean_of_prompts
from encoders.packed.context_cache import CacheBudget, ContextCache
from encoders.text.tokenization import TextTokenizer
from orchestrator.domain.task_spec import InitSpec, TaskSpec
from orchestrator.training.prompt_start import PromptStart, look_up_starts
from orchestrator.training.rank_loop import RankLoop
from orchestrator.training.rank_passes import RankPasses
from orchestrator.training.sharded_base import ShardedBase
from orchestrator.training.task_data import TaskData
from orchestrator.training.task_run import TaskRun
from orchestrator.training.task_trainer import TaskTrainer
from orchestrator.training.worker import MAX_POSITIONS

CACHE_BYTES = 4 << 30

RANDOM, SCALED, VOCABULARY, TEXT, MEAN = STARTS = (
    "random", "random, scaled", "vocabulary", "text", "mean of others",
)  # fmt: skip


@dataclass(frozen=True)
class Key:
    """One run: a task, a seed and a start."""

    task: str
    seed: int
    start: str


@dataclass(frozen=True)
class Curve:
    """What a run's training told: the loss of each step, and held-out figures by step."""

    losses: tuple[float, ...]
    eval_loss: Mapping[int, float]
    eval_accuracy: Mapping[int, float]


class InitRuns:
    """The tasks on one base, for any seeds and starts."""

    def __init__(
        self, base: ShardedBase, tokenizer: TextTokenizer, tasks: Sequence[str], every: int
    ) -> None:
        self._base, self._tokenizer, self._every = base, tokenizer, every
        self._embeddings = base.model.model.get_input_embeddings()
        self.scale = embedding_scale(self._embeddings, tokenizer.text_ids)
        self._specs = {task: read_example(task) for task in tasks}
        self._data = {task: self._read(spec) for task, spec in self._specs.items()}

    def texts(self) -> dict[str, str]:
        """The text each task starts from under TEXT: its candidate answers, in their order."""
        return {task: f" {' '.join(data.candidates)}" for task, data in self._data.items()}

    def train(self, seeds: Sequence[int], steps: int | None) -> dict[Key, Curve]:
        """Train every task from every start; `steps` None takes the spec's own number.

        The mean of others comes last: it is that of the other tasks' prompts from RANDOM.
        """
        keys = [Key(t, seed, start) for t in self._specs for seed in seeds for start in STARTS]
        first = self._run([key for key in keys if key.start != MEAN], steps, {})
        means = {key: self._mean_of_others(key, first) for key in keys if key.start == MEAN}
        trainers = first | self._run(list(means), steps, means)
        return {key: _curve(trainers[key]) for key in keys}

    def _run(
        self, keys: Sequence[Key], steps: int | None, tables: Mapping[Key, Tensor]
    ) -> dict[Key, TaskTrainer]:
        bank = EncoderBank()
        trainers = {key: self._trainer(key, steps, tables.get(key), bank) for key in keys}
        runs = [TaskRun(trainer.spec.task, trainer) for trainer in trainers.values()]
        print(f"training {len(runs)} prompts together", flush=True)
        cache = ContextCache(self._base.model, CacheBudget(CACHE_BYTES))
        passes = RankPasses(self._base, cache, MAX_POSITIONS)
        RankLoop(self._base, passes, runs, _ignore, _ignore).run()
        return trainers

    def _trainer(
        self, key: Key, steps: int | None, table: Tensor | None, bank: EncoderBank
    ) -> TaskTrainer:
        spec = self._spec(key, steps)
        if key.start == SCALED:
            table = self._scaled(spec, self._data[key.task])
        if table is not None:
            start: PromptStart | None = PromptStart(table, self.scale)
        else:
            start = look_up_starts({"": spec}, self._tokenizer, self._embeddings).get("")
        return TaskTrainer(spec, self._data[key.task], self._base.model.token_dim, start, bank)

    def _scaled(self, spec: TaskSpec, data: TaskData) -> Tensor:
        """The random encoder's own output at the base's scale: no anchor, but the same gain."""
        tokens = TaskTrainer(spec, data, self._base.model.token_dim).virtual_tokens()
        return tokens * (self.scale / tokens.square().mean().sqrt())

    def _mean_of_others(self, key: Key, trained: Mapping[Key, TaskTrainer]) -> Tensor:
        others = [Key(task, key.seed, RANDOM) for task in self._specs if task != key.task]
        tables = [trained[other].virtual_tokens() for other in others]
        return mean_of_prompts(tables, tables[0].shape[0])

    def _spec(self, key: Key, steps: int | None) -> TaskSpec:
        """The example's spec under this seed and start; all steps are taken, none is picked."""
        spec = self._specs[key.task]
        init = {
            VOCABULARY: InitSpec.model_validate({"from": "vocabulary"}),
            TEXT: InitSpec.model_validate({"from": "text", "text": self.texts()[key.task]}),
        }.get(key.start)
        training = {"seed": key.seed, "early_stop": None, "steps": steps or spec.training.steps}
        return spec.model_copy(
            update={
                "task": f"{key.task}.{key.seed}.{STARTS.index(key.start)}",
                "encoder": spec.encoder.model_copy(update={"init": init}),
                "training": spec.training.model_copy(update=training),
                "evaluation": spec.evaluation.model_copy(update={"every": self._every}),
            }
        )

    def _read(self, spec: TaskSpec) -> TaskData:
        max_length = self._base.model.model.config.max_position_embeddings
        return read_task_data(spec, self._tokenizer, max_length)


def _curve(trainer: TaskTrainer) -> Curve:
    curve = trainer.curve
    return Curve(
        tuple(loss for _, loss in curve["loss"]),
        dict(curve["eval_loss"]),
        dict(curve["eval_accuracy"]),
    )


def _ignore(_: object) -> None:
    """Events and finished runs are of no use here."""
