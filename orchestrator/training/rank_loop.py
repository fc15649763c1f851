"""The training loop of one rank: all its tasks and trials, one packed forward pass per step.

Each round of the loop has two phases, train and evaluate; under ZeRO-3 all ranks go through the
same phases with the same number of forward passes. A task that fails leaves; the others go on.
Between two rounds tasks may come and go, and change nothing for those that stay. A task that is
done stays until its result is stored, and is not trained any more.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from encoders.bank.encoder_step import EncoderStep, virtual_tokens
from encoders.packed.packing import PackedBatch
from encoders.packed.scoring import label_log_probs
from orchestrator.domain.gang import TaskEvent, TaskFailed, TaskNoted
from orchestrator.training.data_parallel import add_up, own_share, speaks, tell_scores
from orchestrator.training.evaluation import Evaluation, Score
from orchestrator.training.hand_over import HandOver
from orchestrator.training.rank_passes import RankPasses
from orchestrator.training.sharded_base import ShardedBase
from orchestrator.training.task_data import Example, TaskData
from orchestrator.training.task_run import TaskRun
from orchestrator.training.task_trainer import TaskTrainer

Post = Callable[[Sequence[TaskEvent]], None]


class RankLoop:
    """Trains `runs` step by step; `finish` is called with each one as it is done, and again while
    it raises StoreUnavailable. Where ranks make their passes together, `round` is a collective act.
    """

    def __init__(
        self,
        base: ShardedBase,
        passes: RankPasses,
        runs: Sequence[TaskRun],
        post: Post,
        finish: Callable[[TaskRun], None],
        keep: Callable[[Sequence[TaskRun]], None] = lambda runs: None,
        is_stopping: Callable[[], bool] = lambda: False,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._base, self._passes, self._runs = base, passes, list(runs)
        self._keep, self._is_stopping = keep, is_stopping
        self._post, self._hand_over = post, HandOver(finish, post, now)

    @property
    def runs(self) -> Sequence[TaskRun]:
        """Those that are neither handed over nor failed."""
        return tuple(self._runs)

    @property
    def num_positions(self) -> int:
        """Positions that went through the base so far."""
        return self._passes.total_positions

    def run(self) -> None:
        """Go round until no rank has work left, or until `is_stopping` on any of them; `keep` is
        called after each round."""
        while not self._base.any_rank(self._is_stopping()):
            rounds = self.round()
            self._keep(self._runs)
            if not rounds:
                return

    def admit(self, runs: Sequence[TaskRun]) -> None:
        """Take runs in, from the next round on."""
        self._runs += runs

    def round(self) -> int:
        """One step of each task, and what is due after it; returns the forward passes that every
        rank made, 0 if none has work left."""
        training = [run for run in self._runs if not run.is_done]
        trained = self._train_step()
        due = {run: run.due for run in training}
        evaluated = self._evaluate(due)
        self._settle(due)
        done = [run for run in self._runs if run.is_done and not self._hand_over.waits(run)]
        return trained + evaluated + self._end(done)

    def hand_over(self) -> None:
        """Try to store the results that the store did not take, if it is time."""
        for run in self._hand_over.offer_again():
            self.leave(run)

    def _train_step(self) -> int:
        """One optimizer step of each trainer; returns the forward passes made by every rank."""
        trainers = {each.key: each for run in self._runs for each in run.training}
        rows_of = {key: each.next_rows() for key, each in trainers.items()}
        step = EncoderStep([each.slot for each in trainers.values()])
        leaves = dict(zip(rows_of, step.leaves, strict=True))
        num_labels = {
            key: sum(len(row.answers[0]) for row in own_rows) for key, own_rows in rows_of.items()
        }
        shared = [key for key, each in trainers.items() if each.spec.is_data_parallel]
        for key in shared:
            rows_of[key] = own_share(rows_of[key])
        rows = [row for own_rows in rows_of.values() for row in own_rows]
        self._passes.prepare(rows)
        packs = self._passes.split(rows)
        losses = dict.fromkeys(rows_of, 0.0)

        def backward(index: int, logits: Tensor, batch: PackedBatch) -> None:
            keys = [row.prompt or "" for row in packs[index]]
            for key, loss in _backward(logits, batch, keys, num_labels):
                losses[key] += loss

        rounds = self._passes.run(packs, leaves, backward, trains=True)
        add_up(shared, leaves, losses)
        faults = {key: _fault(each, leaves[key], losses[key]) for key, each in trainers.items()}
        step.finish([trainers[key].slot for key, fault in faults.items() if fault is None])
        for key, fault in faults.items():
            if fault is None:
                trainers[key].end_step(losses[key])
            else:
                self._fail(trainers[key], fault)
        return rounds

    def _fail(self, trainer: TaskTrainer, fault: str) -> None:
        next(run for run in self._runs if trainer in run.training).fail(trainer, fault)

    def _settle(self, judged: Mapping[TaskRun, Sequence[TaskTrainer]]) -> None:
        """Let each run that trained take stock of the step; a run that failed leaves."""
        events: list[TaskEvent] = []
        for run in judged:
            run.settle()
            if run.failure is not None:
                events.append(TaskFailed(run.job_id, run.failure, run.epoch))
                self.leave(run)
                continue
            events.append(run.progress())
            if judged[run]:
                events.append(TaskNoted(run.job_id, run.epoch, run.evaluation_note()))
        self._post(events)

    def leave(self, run: TaskRun) -> None:
        """Take a run out; its slots are free."""
        self._runs.remove(run)
        self._hand_over.forget(run)
        run.release()

    def _evaluate(self, due: Mapping[TaskRun, Sequence[TaskTrainer]]) -> int:
        trainers = [each for judged in due.values() for each in judged]
        runs = [run for run, judged in due.items() if judged]
        scores, rounds = self._score_prompts(trainers, lambda data: data.splits["eval"], runs)
        for each in trainers:
            each.take_score(scores[each.key])
        return rounds

    def _end(self, runs: list[TaskRun]) -> int:
        """Score the best step of each run on the reported rows, and finish it."""
        for run in runs:
            run.trainer.restore_best()
            self._post([run.progress("testing")])
        with_test = [run.trainer for run in runs if "test" in run.trainer.data.splits]
        scores, rounds = self._score_prompts(with_test, lambda data: data.held_out, runs)
        for run in runs:
            run.held_out = scores.get(run.trainer.key, run.trainer.best)
            self._post([TaskNoted(run.job_id, run.epoch, run.end_note())])
            if self._hand_over.offer(run):
                self.leave(run)
        return rounds

    def _score_prompts(
        self,
        trainers: list[TaskTrainer],
        rows_of: Callable[[TaskData], Sequence[Example]],
        runs: Sequence[TaskRun],
    ) -> tuple[dict[str, Score], int]:
        """Scores by trainer, and the passes made by every rank. Beside them the manual prompts of
        `runs` are scored, once each."""
        manual = {
            f"manual prompt of {run.job_id}": run
            for run in runs
            if run.trainer.data.manual and run.manual is None
        }
        shared = [each.key for each in trainers if each.spec.is_data_parallel]
        judged = [each for each in trainers if each.key not in shared or speaks()]
        evaluations = {
            each.key: Evaluation(
                each.spec.evaluation.metric,
                each.key,
                rows_of(each.data),
                each.data.candidate_ids,
            )
            for each in judged
        }
        tokens = virtual_tokens([each.slot for each in judged])
        virtual = dict(zip(evaluations, tokens, strict=True))
        evaluations |= {key: _manual_evaluation(run.trainer) for key, run in manual.items()}
        scores, rounds = self._score(evaluations, virtual)
        for key, run in manual.items():
            run.manual = scores.pop(key)
        return tell_scores(shared, scores), rounds

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


def _fault(trainer: TaskTrainer, leaf: Tensor, loss: float) -> str | None:
    """Why a trainer's step cannot be taken, if it cannot."""
    try:
        trainer.check_step(leaf, loss)
    except ValueError as error:
        return str(error)
    return None


def _manual_evaluation(trainer: TaskTrainer) -> Evaluation:
    data = trainer.data
    metric = trainer.spec.evaluation.metric
    return Evaluation(metric, None, data.manual, data.manual_candidate_ids)


def _backward(
    logits: Tensor, batch: PackedBatch, keys: Sequence[str], num_labels: Mapping[str, int]
) -> Iterator[tuple[str, float]]:
    """Add to each trainer's leaf the gradient of its mean label loss; yields its rows' shares."""
    weight = torch.tensor([1.0 / num_labels[key] for key in keys], device=logits.device)
    rows = batch.answer_row[batch.label_answer]
    weighted = -label_log_probs(logits, batch) * weight[rows]
    weighted.sum().backward()
    shares = weight.new_zeros(len(keys)).index_add(0, rows, weighted.detach())
    return zip(keys, shares.tolist(), strict=True)
