"""The training loop of one rank: all its tasks, one packed forward pass per step.

Each round of the loop has two phases, train and evaluate; under ZeRO-3 all ranks go through the
same phases with the same number of forward passes. A task that fails leaves; the others go on.
"""

import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from encoders.packing import PackedBatch, PackedRow, pack, split_by_budget
from encoders.scoring import label_log_probs
from orchestrator.domain.gang import GangEvent, TaskFailed, TaskProgress
from orchestrator.training.evaluation import Evaluation, Score
from orchestrator.training.sharded_base import ShardedBase
from orchestrator.training.task_data import Example, TaskData
from orchestrator.training.task_trainer import TaskTrainer

Post = Callable[[Sequence[GangEvent]], None]


class TaskRun:
    """A task on this rank: its trainer, and the evaluations it still wants."""

    def __init__(self, job_id: str, trainer: TaskTrainer) -> None:
        self.job_id = job_id
        self.trainer = trainer
        self.manual: Score | None = None
        self.held_out: Score | None = None
        self.is_over = False
        self.started = time.monotonic()

    @property
    def name(self) -> str:
        return self.trainer.spec.task

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def progress(self, stage: str = "training") -> TaskProgress:
        trainer = self.trainer
        loss = trainer.curve.get("loss", [(0, None)])[-1][1]
        best = trainer.best.value if trainer.best else None
        steps = trainer.spec.training.steps
        return TaskProgress(self.job_id, trainer.step, steps, loss, best, self.seconds, stage)


class RankLoop:
    """Trains `runs` to their ends; `finish` is called with each one as it is done."""

    def __init__(
        self,
        base: ShardedBase,
        runs: Sequence[TaskRun],
        post: Post,
        finish: Callable[[TaskRun], None],
        max_positions: int,
        is_stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self._base, self._runs = base, list(runs)
        self._is_stopping = is_stopping
        self._post, self._finish = post, finish
        self._max_positions = max_positions

    def run(self) -> None:
        """Loop until no rank has work left, or until `is_stopping` on any of them."""
        self._score_manual_prompts()
        while not self._base.any_rank(self._is_stopping()):
            trained = self._train_step([run for run in self._runs if not run.trainer.is_done])
            evaluated = self._evaluate([run for run in self._runs if run.trainer.is_evaluation_due])
            tested = self._end([run for run in self._runs if run.trainer.is_done])
            self._runs = [run for run in self._runs if not run.is_over]
            if not trained + evaluated + tested:
                return

    def _train_step(self, runs: list[TaskRun]) -> int:
        """One optimizer step of each task; returns the forward passes made by every rank."""
        steps = {run.name: (run, *run.trainer.begin_step()) for run in runs}
        leaves = {name: leaf for name, (_, _, leaf) in steps.items()}
        rows = [row for _, task_rows, _ in steps.values() for row in task_rows]
        num_labels = {
            name: sum(len(row.answers[0]) for row in task_rows)
            for name, (_, task_rows, _) in steps.items()
        }
        packs = list(split_by_budget(rows, self._max_positions))
        losses = dict.fromkeys(steps, 0.0)
        rounds = self._base.rounds(len(packs))
        for index in range(rounds):
            if index < len(packs):
                self._backward(packs[index], leaves, num_labels, losses)
            else:
                batch, virtual = self._base.idle_batch()
                self._base.model.logits(batch, virtual).sum().mul(0).backward()
        for name, (run, _, leaf) in steps.items():
            self._end_step(run, leaf, losses[name])
        return rounds

    def _backward(
        self,
        rows: tuple[PackedRow, ...],
        leaves: Mapping[str, Tensor],
        num_labels: Mapping[str, int],
        losses: dict[str, float],
    ) -> None:
        """Add each task's mean label loss to `losses` and its gradient to its leaf."""
        batch = pack(rows, {name: leaf.shape[0] for name, leaf in leaves.items()})
        per_label = -label_log_probs(self._base.model.logits(batch, leaves), batch)
        names = [row.prompt or "" for row in rows]
        weight = torch.tensor([1.0 / num_labels[name] for name in names])
        weighted = per_label * weight[batch.answer_row[batch.label_answer]]
        weighted.sum().backward()
        for name, part in zip(names, _sum_by_row(weighted.detach(), batch).tolist(), strict=True):
            losses[name] += part

    def _end_step(self, run: TaskRun, leaf: Tensor, loss: float) -> None:
        try:
            run.trainer.end_step(leaf, loss)
        except ValueError as error:
            run.is_over = True
            self._post([TaskFailed(run.job_id, str(error))])
            self._runs.remove(run)
        else:
            self._post([run.progress()])

    def _score_manual_prompts(self) -> None:
        wanting = [run for run in self._runs if run.trainer.data.manual]
        scores, _ = self._score({run.name: self._manual_evaluation(run) for run in wanting}, {})
        for run in wanting:
            run.manual = scores[run.name]

    def _manual_evaluation(self, run: TaskRun) -> Evaluation:
        data = run.trainer.data
        metric = run.trainer.spec.evaluation.metric
        return Evaluation(metric, None, data.manual, data.manual_candidate_ids, self._max_positions)

    def _evaluate(self, runs: list[TaskRun]) -> int:
        scores, rounds = self._score_prompts(runs, lambda data: data.splits["eval"])
        for run in runs:
            run.trainer.take_score(scores[run.name])
            self._post([run.progress()])
        return rounds

    def _end(self, runs: list[TaskRun]) -> int:
        """Score the best step of each task on the reported rows, and finish it."""
        for run in runs:
            run.trainer.restore_best()
            self._post([run.progress("testing")])
        with_test = [run for run in runs if "test" in run.trainer.data.splits]
        scores, rounds = self._score_prompts(with_test, lambda data: data.held_out)
        for run in runs:
            run.held_out = scores.get(run.name, run.trainer.best)
            run.is_over = True
            self._finish(run)
        return rounds

    def _score_prompts(
        self, runs: list[TaskRun], rows_of: Callable[[TaskData], Sequence[Example]]
    ) -> tuple[dict[str, Score], int]:
        evaluations = {
            run.name: Evaluation(
                run.trainer.spec.evaluation.metric,
                run.name,
                rows_of(run.trainer.data),
                run.trainer.data.candidate_ids,
                self._max_positions,
            )
            for run in runs
        }
        virtual = {run.name: run.trainer.virtual_tokens() for run in runs}
        return self._score(evaluations, virtual)

    @torch.no_grad()
    def _score(
        self, evaluations: Mapping[str, Evaluation], virtual: Mapping[str, Tensor]
    ) -> tuple[dict[str, Score], int]:
        """Run the evaluations' packs; returns the scores and the passes made by every rank."""
        work = [(name, rows) for name, each in evaluations.items() for rows in each.packs]
        lengths = {name: tokens.shape[0] for name, tokens in virtual.items()}
        rounds = self._base.rounds(len(work))
        for index in range(rounds):
            if index < len(work):
                name, rows = work[index]
                batch = pack(rows, lengths)
                evaluations[name].add(self._base.model.logits(batch, virtual), batch)
            else:
                self._base.model.logits(*self._base.idle_batch())
        return {name: each.score() for name, each in evaluations.items()}, rounds


def _sum_by_row(labels: Tensor, batch: PackedBatch) -> Tensor:
    rows = batch.answer_row[batch.label_answer]
    return labels.new_zeros(int(batch.answer_row.max()) + 1).index_add(0, rows, labels)
