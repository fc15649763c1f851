"""Trains real tasks together, as its own process: `python -m benchmarks.tutti_script ORDER`.

One rank of a gang without Ray: spec files, encoding, base, context cache, RankLoop, evaluations.
The order is a JSON file (see TuttiOrder); what happened is printed as JSON on the last line.
"""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.base_folder import load_packed
from benchmarks.example_tasks import read_example, read_task_data
from benchmarks.tutti_loop import refuse_failures
from encoders.bank.encoder_bank import EncoderBank
from encoders.packed.context_cache import CacheBudget, ContextCache
from encoders.text.tokenization import TextTokenizer
from orchestrator.domain.task_spec import EarlyStop, TaskSpec
from orchestrator.training.rank_loop import RankLoop
from orchestrator.training.rank_passes import RankPasses
from orchestrator.training.sharded_base import ShardedBase
from orchestrator.training.task_run import TaskRun
from orchestrator.training.task_trainer import TaskTrainer
from orchestrator.training.worker import MAX_POSITIONS

CACHE_BYTES = 4 << 30


@dataclass(frozen=True)
class TuttiOrder:
    """What the process is to do: `targets` by task; evaluations are `every` so many steps.

    `steps`, if given, takes the place of every spec's own number.
    """

    base: str
    threads: int
    targets: Mapping[str, float]
    every: int
    steps: int | None

    def write(self, path: Path) -> Path:
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")
        return path


def main(order: TuttiOrder) -> dict[str, Any]:
    """Load the base, then train all tasks, each until its target or its last step."""
    torch.set_num_threads(order.threads)
    base = ShardedBase(load_packed(Path(order.base)), zero_stage=0)
    tokenizer = TextTokenizer.load(Path(order.base))
    started = time.perf_counter()
    specs = [
        until_target(read_example(name), target, order.every, order.steps)
        for name, target in order.targets.items()
    ]
    tasks = train_together(base, tokenizer, specs)
    return {"train_s": time.perf_counter() - started, "tasks": tasks}


def until_target(spec: TaskSpec, target: float, every: int, steps: int | None = None) -> TaskSpec:
    """The spec with one way to end early: an evaluation that reaches the target accuracy."""
    training = {"early_stop": EarlyStop(target=target), "steps": steps or spec.training.steps}
    return spec.model_copy(
        update={
            "training": spec.training.model_copy(update=training),
            "evaluation": spec.evaluation.model_copy(update={"every": every}),
        }
    )


def train_together(
    base: ShardedBase, tokenizer: TextTokenizer, specs: Sequence[TaskSpec]
) -> dict[str, dict[str, Any]]:
    """Train to the ends; returns each task's losses, accuracies by step, and seconds to its end."""
    max_length, bank = base.model.model.config.max_position_embeddings, EncoderBank()
    started, finished_s = time.perf_counter(), dict[str, float]()
    runs = [
        TaskRun(
            spec.task,
            TaskTrainer(
                spec,
                read_task_data(spec, tokenizer, max_length),
                base.model.token_dim,
                bank=bank,
            ),
        )
        for spec in specs
    ]

    def finish(run: TaskRun) -> None:
        finished_s[run.name] = time.perf_counter() - started

    passes = RankPasses(base, ContextCache(base.model, CacheBudget(CACHE_BYTES)), MAX_POSITIONS)
    RankLoop(base, passes, runs, refuse_failures, finish).run()
    return {
        run.name: {
            "losses": [loss for _, loss in run.trainer.curve["loss"]],
            "accuracies": dict(run.trainer.curve["eval_accuracy"]),
            "finished_s": finished_s[run.name],
        }
        for run in runs
    }


if __name__ == "__main__":
    facts = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    print(json.dumps(main(TuttiOrder(**facts))))
