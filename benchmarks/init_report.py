"""What the starts saved: steps to a loss, medians over seeds, as JSON and as Markdown."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.init_runs import RANDOM, STARTS, Curve, Key
from benchmarks.machine import machine_notes
from benchmarks.report import table, write_results

WINDOW = 5  # steps over which a training loss is averaged


def smoothed(losses: Sequence[float]) -> list[float]:
    """The mean of each step's loss and of up to WINDOW - 1 before it."""
    runs = (losses[max(0, i + 1 - WINDOW) : i + 1] for i in range(len(losses)))
    return [sum(run) / len(run) for run in runs]


def steps_to(losses: Sequence[float], target: float) -> int | None:
    """The first step, from 1, whose smoothed loss is at most `target`; None if there is none."""
    return next((i + 1 for i, loss in enumerate(smoothed(losses)) if loss <= target), None)


@dataclass(frozen=True)
class InitReport:
    """The curves of all runs. `facts` says on which machine and base, and from which texts."""

    curves: Mapping[Key, Curve]
    num_steps: int | None
    seconds: float
    facts: Mapping[str, Any]

    def write(self, folder: Path, name: str) -> None:
        """Write `name`.json and `name`.md into `folder`."""
        figures = [
            {"task": key.task, "seed": key.seed, "start": key.start}
            | vars(curve)
            | self._steps(key)
            for key, curve in self.curves.items()
        ]
        facts = {**self.facts, "seconds": self.seconds, "runs": figures}
        write_results(folder, name, facts, self.markdown())

    def _steps(self, key: Key) -> dict[str, int | None]:
        """Steps to the losses that the same task and seed has from random, halfway and at its
        end."""
        random = smoothed(self.curves[Key(key.task, key.seed, RANDOM)].losses)
        losses = self.curves[key].losses
        return {
            "steps_to_half": steps_to(losses, random[len(random) // 2 - 1]),
            "steps_to_end": steps_to(losses, random[-1]),
        }

    def markdown(self) -> str:
        tasks = list(dict.fromkeys(key.task for key in self.curves))
        lines = ["# Steps that a start saves", ""]
        for task in [*tasks, None]:
            lines += [f"## {task or 'All tasks'}", "", *self._table(task), ""]
        return "\n".join([*lines, *self._notes()]) + "\n"

    def _table(self, task: str | None) -> list[str]:
        columns = (
            "start", "first loss", "steps to random's loss halfway", "of random's",
            "steps to random's last loss", "of random's", "last eval loss", "last eval accuracy",
        )  # fmt: skip
        rows = [self._row(start, task) for start in STARTS]
        return table(columns, rows, num_left=1)

    def _row(self, start: str, task: str | None) -> list[str]:
        keys = [k for k in self.curves if k.start == start and task in (None, k.task)]
        curves = [self.curves[key] for key in keys]
        return [
            start,
            _median(curve.losses[0] for curve in curves),
            *self._saved(keys, "steps_to_half"),
            *self._saved(keys, "steps_to_end"),
            _median(list(curve.eval_loss.values())[-1] for curve in curves),
            _median(list(curve.eval_accuracy.values())[-1] for curve in curves),
        ]

    def _saved(self, keys: Sequence[Key], figure: str) -> list[str]:
        """Median steps and median ratio to random's; a run that never gets there counts as one
        that gets there after its last step."""
        steps, ratios, num_missed = [], [], 0
        for key in keys:
            own = self._steps(key)[figure]
            num_missed += own is None
            steps.append(own or len(self.curves[key].losses) + 1)
            ratios.append(steps[-1] / (self._steps(Key(key.task, key.seed, RANDOM))[figure] or 1))
        missed = f" ({num_missed} of {len(keys)} never)" if num_missed else ""
        return [f"{statistics.median(steps):g}{missed}", f"{statistics.median(ratios):.2f}"]

    def _notes(self) -> list[str]:
        facts = self.facts
        seeds = len({key.seed for key in self.curves})
        steps = f"{self.num_steps} steps" if self.num_steps else "the spec's steps"
        texts = "; ".join(f"{task}: `{text}`" for task, text in facts["texts"].items())
        return (
            f"""\
- Medians over {seeds} seeds; each spec's own encoder, learning rate and schedule, over {steps}.
  Losses are of training, averaged over {WINDOW} steps. Under every start of a task and seed the
  weights of the encoder and the batches are the same.
- random: the encoder alone. random, scaled: its output multiplied to the base's embedding scale
  ({facts["scale"]:.3f}), no anchor. The others are AnchoredPrompt. mean of others: the mean of the
  other tasks' prompts of the same seed, trained from random.
- text: the candidate answers, cut to the prompt's length. {texts}.
- Base: {facts["base"]}. All runs packed in one process: {self.seconds / 60:.0f} min. Figures here
  count steps, not seconds.""".splitlines()
            + [f"- {note}" for note in machine_notes(facts)]
        )


def _median(values: Iterable[float]) -> str:
    return f"{statistics.median(values):.2f}"
