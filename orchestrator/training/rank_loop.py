"""The training loop of one rank: all its tasks, one packed forward pass per step.

Each round of the loop has two phases, train and evaluate; under ZeRO-3 all ranks go through the
same phases with the same number of forward passes. A task that fails leaves; the others go on.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from encoders.bank.encoder_step import EncoderStep, virtual_tokens
from encoders.packed.packing import PackedBatch
from encoders.packed.scoring import label_log_probs
from orchestrator.domain.gang import GangEvent, TaskFailed
from orchestrator.training.evaluation import Evaluation, Score
from orchestrator.training.rank_passes import RankPasses
from orchestrator.training.sharded_base import ShardedBase
from orchestrator.training.task_data import Example, TaskData
from orchestrator.training.task_run import TaskRun

Post = Callable[[Sequence[GangEvent]], None]


class RankLoop:
    """Trains `runs` to their ends; `finish` is called with each one as it is done, `keep` with the
    others after each step."""

    def __init__(
        self,
        base: ShardedBase,
        passes: RankPasses,
        runs: Sequence[TaskRun],
        post: Post,
        finish: Callable[[TaskRun], None],
        keep: Callable[[Sequence[TaskRun]], None] = lambda runs: None,
        is_stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self._base, self._passes, self._runs = base, passes, list(runs)
        self._keep, self._is_stopping = keep, is_stopping
        self._post, self._finish = post, finish

    def run(self) -> None:
        """Loop until no rank has work left, or until `is_stopping` on any of them."""
        self._score_manual_prompts()
        while not self._base.any_rank(self._is_stopping()):
            trained = self._train_step([run for run in self._runs if not run.trainer.is_done])
            evaluated = self._evaluate([run for run in self._runs if run.trainer.is_evaluation_due])
            tested = self._end([run for run in self._runs if run.trainer.is_done])
            self._leave([run for run in self._runs if run.is_over])
            self._keep(self._runs)
            if not trained + evaluated + tested:
                return

    def _leave(self, runs: list[TaskRun]) -> None:
        """Take `runs` out; their slots are free."""
        for run in runs:
            self._runs.remove(run)
            run.trainer.release()

    def _train_step(self, runs: list[TaskRun]) -> int:
        """One optimizer step of each task; returns the forward passes made by every rank."""
        rows_of = {run.name: run.trainer.next_rows() for run in runs}
        step = EncoderStep([run.trainer.slot for run in runs])
        leaves = dict(zip(rows_of, step.leaves, strict=True))
        num_labels = {
            name: sum(len(row.answers[0]) for row in task_rows)
            for name, task_rows in rows_of.items()
        }
        rows = [row for task_rows in rows_of.values() for row in task_rows]
        self._passes.prepare(rows)
        packs = self._passes.split(rows)
        losses = dict.fromkeys(rows_of, 0.0)

        def backward(index: int, logits: Tensor, batch: PackedBatch) -> None:
            names = [row.prompt or "" for row in packs[index]]
            for name, loss in _backward(logits, batch, names, num_labels):
                losses[name] += loss

        rounds = self._passes.run(packs, leaves, backward, trains=True)
        healthy = [run for run in runs if self._check(run, leaves[run.name], losses[run.name])]
        step.finish([run.trainer.slot for run in healthy])
        for run in healthy:
            run.trainer.end_step(losses[run.name])
            self._post([run.progress()])
        self._leave([run for run in runs if run.is_over])
        return rounds

    def _check(self, run: TaskRun, leaf: Tensor, loss: float) -> bool:
        """Whether a task's step can be taken; a task whose step cannot fails and leaves."""
        try:
            run.trainer.check_step(leaf, loss)
        except ValueError as error:
            run.is_over = True
            self._post([TaskFailed(run.job_id, str(error))])
            return False
        return True

    def _score_manual_prompts(self) -> None:
        wanting = [run for run in self._runs if run.trainer.data.manual and run.manual is None]
        scores, _ = self._score({run.name: self._manual_evaluation(run) for run in wanting}, {})
        for run in wanting:
            run.manual = scores[run.name]

    def _manual_evaluation(self, run: TaskRun) -> Evaluation:
        data = run.trainer.data
        metric = run.trainer.spec.evaluation.metric
        return Evaluation(metric, None, data.manual, data.manual_candidate_ids)

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
            )
            for run in runs
        }
        tokens = virtual_tokens([run.trainer.slot for run in runs])
        return self._score(evaluations, dict(zip(evaluations, tokens, strict=True)))

    def _score(
        self, evaluations: Mapping[str, Evaluation], virtual: Mapping[str, Tensor]
    ) -> tuple[dict[str, Score], int]:
        """Run the evaluations; returns the scores and the passes made by every rank."""
        self._passes.prepare([row for each in evaluations.values() for row in each.rows])
        work = [(e, rows) for e in evaluations.values() for rows in self._passes.split(e.rows)]

        def add(index: int, logits: Tensor, batch: PackedBatch) -> None:
            work[index][0].add(logits, batch)

        rounds = self._passes.run([rows for _, rows in work], virtual, add, trains=False)
        return {name: each.score() for name, each in evaluations.items()}, rounds


def _backward(
    logits: Tensor, batch: PackedBatch, names: Sequence[str], num_labels: Mapping[str, int]
) -> Iterator[tuple[str, float]]:
    """Add to each task's leaf the gradient of its mean label loss; yields its rows' shares."""
    weight = torch.tensor([1.0 / num_labels[name] for name in names])
    rows = batch.answer_row[batch.label_answer]
    weighted = -label_log_probs(logits, batch) * weight[rows]
    weighted.sum().backward()
    shares = weight.new_zeros(len(names)).index_add(0, rows, weighted.detach())
    return zip(names, shares.tolist(), strict=True)
